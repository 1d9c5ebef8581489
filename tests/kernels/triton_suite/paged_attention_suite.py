"""Paged attention: equal to the row-by-row specification, whatever lies in pages that are not the sequence's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.kernels.triton_suite.device import DEVICE, DTYPES, assert_close, nan, poisoned_memory, randn, relative_error
from torch import Tensor

from loraplex_kernels.chip import Chip
from loraplex_kernels.paged_attention import configs, reference
from loraplex_kernels.paged_attention.launcher import DecodeScratch, PrefillTiles, decode_attention, prefill_attention

__all__ = ["poisoned_memory"]

PAGE = 16
LAYERS = 2


@dataclasses.dataclass
class Case:
    """Sequences in scattered pages of a cache of two layers; all that no sequence has written is NaN."""

    query: Tensor
    keys: Tensor
    values: Tensor
    page_table: Tensor
    num_rows: Sequence[int]
    context_lens: Sequence[int]

    @classmethod
    def make(
        cls,
        context_lens: Sequence[int],
        num_rows: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        kv_heads: int = 2,
        group: int = 4,
        head_dim: int = 64,
        window: int | None = None,
    ) -> "Case":
        needed = [-(-context // PAGE) for context in context_lens]
        num_pages = sum(needed) + 2
        storage = nan(num_pages, LAYERS, 2, kv_heads, PAGE, head_dim, dtype=dtype)
        order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(3)).tolist()
        # A column past a context names a page that exists, but not this sequence's.
        table = torch.full((len(needed), max([*needed, 1]) + 1), order[0], dtype=torch.int32)
        taken = iter(order[2:])
        for sequence, context in enumerate(context_lens):
            first = 0 if window is None else max(0, context - num_rows[sequence] - window + 1)
            for column in range(needed[sequence]):
                page = table[sequence, column] = next(taken)
                start, stop = max(first - column * PAGE, 0), min(context - column * PAGE, PAGE)
                if start < stop:
                    seed = 100 * sequence + column
                    filled = randn(2, kv_heads, stop - start, head_dim, seed=seed, dtype=dtype)
                    storage[page, 1, :, :, start:stop] = filled
        query = randn(sum(num_rows), kv_heads * group, head_dim, seed=1, dtype=dtype)
        return cls(query, storage[:, 1, 0], storage[:, 1, 1], table.to(DEVICE), num_rows, context_lens)

    def wanted(self, window: int | None = None) -> Tensor:
        query, keys, values = (tensor.double().cpu() for tensor in (self.query, self.keys, self.values))
        table = self.page_table.cpu()
        out = reference.attend(query, keys, values, table, self.num_rows, self.context_lens, window=window)
        return out.to(DEVICE)

    def lens(self) -> Tensor:
        return torch.tensor(self.context_lens, dtype=torch.int32).to(DEVICE)

    def decode(self, *, splits: int, window: int | None = None) -> Tensor:
        out = torch.empty_like(self.query)
        rows, heads, size = self.query.shape
        scratch = DecodeScratch.reserve(
            num_sequences=rows, num_heads=heads, head_dim=size, splits=splits, device=DEVICE
        )
        tensors = (self.query, self.keys, self.values, self.page_table, self.lens(), out)
        decode_attention(*tensors, scratch, splits=splits, window=window)
        return out

    def prefill(self, *, block_m: int = 16, window: int | None = None) -> Tensor:
        out = torch.empty_like(self.query)
        config = configs.PrefillConfig(block_m=block_m, block_n=32, num_warps=4, num_stages=2)
        group = self.query.shape[1] // self.keys.shape[1]
        tiles = PrefillTiles.of(self.num_rows, block_m=block_m, group=group, device=DEVICE)
        tensors = (self.query, self.keys, self.values, self.page_table, self.lens(), out)
        prefill_attention(*tensors, tiles, config, window=window)
        return out


DECODE_LENS = [1, 15, 16, 17, 40, 70]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 4])
def test_decode_over_contexts_on_and_off_page_boundaries(splits: int, dtype: torch.dtype) -> None:
    case = Case.make(DECODE_LENS, [1] * 6, dtype=dtype)
    assert_close(case.decode(splits=splits), case.wanted(), dtype)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_decode_of_grouped_heads(group: int, head_dim: int) -> None:
    case = Case.make([33, 5], [1, 1], group=group, head_dim=head_dim, kv_heads=3)
    assert_close(case.decode(splits=2), case.wanted(), torch.float32)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("window", [1, 7, 16, 33, 400])
def test_decode_reads_nothing_that_has_left_the_window(window: int, splits: int) -> None:
    case = Case.make([50, 16, 9], [1] * 3, window=window, group=1)
    assert_close(case.decode(splits=splits, window=window), case.wanted(window), torch.float32)


def test_a_free_place_of_the_batch_gives_zeros_and_reads_nothing() -> None:
    case = Case.make([20, 0, 3], [1, 1, 1])
    case.query[1] = float("nan")
    for splits in (1, 2):
        out = case.decode(splits=splits)
        assert not out[1].any()
        assert not out.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_m", [16, 64])
def test_prefill_with_no_prefix_part_of_a_page_and_pages(block_m: int, dtype: torch.dtype) -> None:
    #           whole prompt, prefix of 5, of a page, of a page and 3; a decode row; nothing to do
    case = Case.make([21, 12, 32, 40, 37, 8], [21, 7, 16, 21, 1, 0], dtype=dtype, kv_heads=1)
    assert_close(case.prefill(block_m=block_m), case.wanted(), dtype)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_prefill_of_grouped_heads(group: int, head_dim: int) -> None:
    case = Case.make([19, 40], [19, 6], group=group, head_dim=head_dim, kv_heads=2)
    assert_close(case.prefill(), case.wanted(), torch.float32)


@pytest.mark.parametrize("window", [1, 5, 32, 40, 400])
def test_prefill_reads_nothing_that_has_left_the_window(window: int) -> None:
    case = Case.make([37, 71], [37, 9], window=window, group=1, kv_heads=1)
    assert_close(case.prefill(window=window), case.wanted(window), torch.float32)


@pytest.mark.parametrize("window", [None, 20])
def test_a_step_with_a_long_prefix_takes_the_unmasked_blocks(window: int | None) -> None:
    case = Case.make([150], [3], window=window, kv_heads=1)
    assert_close(case.prefill(window=window), case.wanted(window), torch.float32)


def test_no_rows() -> None:
    case = Case.make([], [])
    assert case.decode(splits=2).shape == case.prefill().shape == (0, 8, 64)


def test_equal_sequences_give_equal_rows_wherever_their_pages_lie() -> None:
    case = Case.make([40, 40], [1, 1])
    case.keys[case.page_table[1, :3].long()] = case.keys[case.page_table[0, :3].long()]
    case.values[case.page_table[1, :3].long()] = case.values[case.page_table[0, :3].long()]
    case.query[1] = case.query[0]
    for out in (case.decode(splits=2), case.prefill()):
        assert torch.equal(out[0], out[1])


def _other_page(case: Case) -> None:
    case.page_table[4, 0] = case.page_table[5, 0]


def _shorter_context(case: Case) -> None:
    case.context_lens = [*case.context_lens[:-1], case.context_lens[-1] - 1]


@pytest.mark.parametrize("damage", [_other_page, _shorter_context])
def test_a_wrong_page_table_or_length_is_noticed(damage: Any) -> None:
    case = Case.make([3, 3, 3, 3, 40, 70], [1] * 6, kv_heads=1)
    wanted = case.wanted()
    damage(case)
    for out in (case.decode(splits=2), case.prefill()):
        assert relative_error(out, wanted) > 1e-3


def test_operands_that_do_not_fit_are_refused_by_name() -> None:
    case = Case.make([5], [1])
    changes: list[dict[str, Any]] = [
        {"query": case.query[:, :7]},
        {"query": case.query.double()},
        {"keys": case.keys[:, :1]},
        {"page_table": case.page_table.long()},
        {"context_lens": [5, 5]},
    ]
    for change in changes:
        with pytest.raises(ValueError, match="got "):
            dataclasses.replace(case, **change).decode(splits=1)
    with pytest.raises(ValueError, match="window is 0"):
        case.decode(splits=1, window=0)


def test_the_number_of_splits_follows_from_capacities_alone() -> None:
    h100 = Chip(capability=90, num_sms=132)
    assert configs.num_splits(h100, 64, 8, 2048) == 2
    assert configs.num_splits(h100, 1, 8, 8192) == 32
    assert configs.num_splits(h100, 1, 8, 100) == 1
    assert configs.num_splits(h100, 256, 8, 8192) == 1
