"""LoRA of the embedding: equal to the row-by-row specification."""

import dataclasses

import pytest
import torch
from tests.kernels.triton_suite.device import DEVICE, DTYPES, assert_close, poisoned_memory, relative_error
from tests.kernels.triton_suite.lora_suite import MIXED, Case, Runs, widened
from torch import Tensor

from loraplex_kernels.embedding_lora import reference
from loraplex_kernels.embedding_lora.launcher import add_lora_embedding
from loraplex_kernels.lora.adapter_table import GroupShape, SiteTable
from loraplex_kernels.lora.plan import PlanBuffers

__all__ = ["poisoned_memory"]

SHAPE = GroupShape(in_features=97, out_sizes=(150,))
RANKS = [(3,), (17,), (40,)]


def tokens(case: Case) -> Tensor:
    """The first, the last, and the same one twice are among them."""
    ids = torch.arange(len(case.base)) * 31 % 97
    ids[-1:] = 96
    return ids.to(DEVICE)


def run(case: Case, *, block_m: int = 16, table: SiteTable | None = None, token_ids: Tensor | None = None) -> Tensor:
    out = case.base.clone()
    plan = PlanBuffers.of(case.plan(block_m), device=DEVICE)
    ids = tokens(case) if token_ids is None else token_ids
    add_lora_embedding(ids, out, plan, table or case.table.group(0), case.pool)
    return out


def wanted(case: Case) -> Tensor:
    rows = [pairs for count, pairs in case.runs for _ in range(count)]
    groups = [widened(group) for group in case.groups]
    return reference.lora_embedding_rows(tokens(case).cpu(), case.base.double().cpu(), rows, groups).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_m", [1, 16])
def test_mixed_ranks_rows_and_compositions_equal_the_specification(block_m: int, dtype: torch.dtype) -> None:
    case = Case.make(SHAPE, RANKS, MIXED, dtype)
    out = run(case, block_m=block_m)
    assert_close(out, wanted(case), dtype)
    base_rows = [row for row, pairs in enumerate(pairs for n, pairs in MIXED for _ in range(n)) if not pairs]
    assert torch.equal(out[base_rows], case.base[base_rows])


@pytest.mark.parametrize("runs", [[], [(3, ())], [(20, ((1, -0.5),))]], ids=["no rows", "base only", "two tiles"])
def test_patterns(runs: Runs) -> None:
    case = Case.make(SHAPE, RANKS, runs, torch.float32)
    assert_close(run(case), wanted(case), torch.float32)


def test_a_wrong_token_table_or_scale_is_noticed() -> None:
    case = Case.make(SHAPE, RANKS, MIXED, torch.float32)
    table, right = case.table.group(0), wanted(case)
    shifted = dataclasses.replace(table, slices=table.slices.roll(1))
    scaled = dataclasses.replace(table, scales=table.scales * 1.01)
    assert relative_error(run(case, table=shifted), right) > 1e-3
    assert relative_error(run(case, table=scaled), right) > 1e-4
    assert relative_error(run(case, token_ids=(tokens(case) + 1) % 97), right) > 1e-3


def test_operands_that_do_not_fit_are_refused_by_name() -> None:
    case = Case.make(SHAPE, RANKS, MIXED, torch.float32)
    with pytest.raises(ValueError, match="token_ids"):
        run(case, token_ids=tokens(case).int())
    with pytest.raises(ValueError, match="token_ids"):
        run(case, token_ids=tokens(case)[1:])
    with pytest.raises(ValueError, match="pool"):
        run(dataclasses.replace(case, pool=case.pool.half()))
