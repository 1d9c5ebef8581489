"""Native attention over paged keys and values, at every instruction set, against float64 row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.paged_steps import Heads, Rows, Step, random_tensor, steps
from torch import Tensor

from loraplex_kernels.cpu_native.attention import attend
from loraplex_kernels.cpu_native.library import Library
from loraplex_kernels.paged_attention import reference as attention_reference
from loraplex_kernels.rope_cache import reference as rope_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
LAYERS, LAYER = 2, 1
RELATIVE_ERROR = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def run(
    kernels: Library, step: Step, qkv: Tensor, storage: Tensor, window: int | None = None, num_threads: int = 2
) -> Tensor:
    cos, sin = step.angles()
    return attend(
        kernels,
        qkv,
        cos=cos.float(),
        sin=sin.float(),
        slots=step.slots(),
        spans=step.spans,
        storage=storage,
        layer=LAYER,
        num_heads=step.heads.num_heads,
        window=window,
        num_threads=num_threads,
    )


def wanted(step: Step, qkv: Tensor, storage: Tensor, window: int | None) -> Tensor:
    """Changes ``storage``, float64, as the step should."""
    keys, values = storage[:, LAYER, 0], storage[:, LAYER, 1]
    cos, sin = step.angles()
    rows, heads = torch.arange(step.num_rows), step.heads.num_heads
    query = rope_reference.rope_and_cache(qkv, rows, step.slots(), cos, sin, keys, values, heads)
    lengths = ([span.num_rows for span in step.spans], [span.context_len for span in step.spans])
    mixed = attention_reference.attend(query, keys, values, step.page_table(), *lengths, window=window)
    return mixed.reshape(step.num_rows, -1)


def relative_error(got: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.norm(got.double() - truth) / torch.linalg.norm(truth))


@given(step=steps(), window=st.sampled_from((None, None, 1, 5, 33)), num_threads=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_attention_equals_float64_and_writes_its_own_slots_alone(
    kernels: Library, step: Step, window: int | None, num_threads: int
) -> None:
    qkv = random_tensor(step.num_rows, step.heads.all, step.heads.head_dim, seed=1)
    truth = step.storage(LAYERS)
    storage = truth.to(step.dtype)
    got = run(kernels, step, qkv.float(), storage, window, num_threads)
    expected = wanted(step, qkv, truth, window)
    assert relative_error(got, expected) <= RELATIVE_ERROR[step.dtype]
    assert torch.equal(storage.isnan(), truth.isnan())
    assert relative_error(storage.nan_to_num(), truth.nan_to_num()) <= RELATIVE_ERROR[step.dtype]


def one_chunk(num_rows: int, before: int, dtype: torch.dtype) -> Step:
    num_pages = math.ceil((num_rows + before) / 16)
    pages = tuple(reversed(range(num_pages)))
    span = Rows(start_row=0, num_rows=num_rows, context_len=num_rows + before, page_ids=pages)
    heads = Heads(num_kv_heads=1, group=3, head_dim=64)
    return Step(spans=[span], page_size=16, num_pages=num_pages, heads=heads, dtype=dtype)


@pytest.mark.parametrize("dtype", list(RELATIVE_ERROR))
@pytest.mark.parametrize(("num_rows", "before"), [(65, 3)])
def test_a_chunk_longer_than_one_item_of_work_equals_float64(
    kernels: Library, num_rows: int, before: int, dtype: torch.dtype
) -> None:
    step = one_chunk(num_rows, before, dtype)
    qkv = random_tensor(step.num_rows, step.heads.all, 64, seed=2)
    truth = step.storage(LAYERS)
    got = run(kernels, step, qkv.float(), truth.to(dtype))
    assert relative_error(got, wanted(step, qkv, truth, None)) <= RELATIVE_ERROR[dtype]


@given(step=steps())
@settings(max_examples=8, deadline=None)
def test_a_sequence_is_the_same_to_the_bit_in_any_batch(kernels: Library, step: Step) -> None:
    qkv = random_tensor(step.num_rows, step.heads.all, step.heads.head_dim, seed=3).float()
    storage = step.storage(LAYERS).to(step.dtype)
    together = run(kernels, step, qkv.clone(), storage.clone())
    cos, sin = step.angles()
    slots = step.slots()
    for span in step.spans:
        rows = slice(span.start_row, span.start_row + span.num_rows)
        lone = Rows(start_row=0, num_rows=span.num_rows, context_len=span.context_len, page_ids=span.page_ids)
        got = attend(
            kernels,
            qkv[rows].clone(),
            cos=cos[rows].float(),
            sin=sin[rows].float(),
            slots=slots[rows],
            spans=[lone],
            storage=storage,
            layer=LAYER,
            num_heads=step.heads.num_heads,
            num_threads=1,
        )
        assert torch.equal(got, together[rows])


@pytest.mark.parametrize(
    "span",
    [
        Rows(start_row=1, num_rows=2, context_len=2, page_ids=(0,)),
        Rows(start_row=0, num_rows=1, context_len=2, page_ids=(0,)),
        Rows(start_row=0, num_rows=2, context_len=1, page_ids=(0,)),
        Rows(start_row=0, num_rows=2, context_len=17, page_ids=(0,)),
        Rows(start_row=0, num_rows=2, context_len=2, page_ids=()),
        Rows(start_row=0, num_rows=2, context_len=2, page_ids=(1,)),
        Rows(start_row=0, num_rows=2, context_len=2, page_ids=(-1,)),
    ],
)
def test_spans_outside_rows_pages_or_cache_are_refused_before_anything_is_written(kernels: Library, span: Rows) -> None:
    storage = torch.full((1, 1, 2, 1, 16, 8), math.nan)
    with pytest.raises(ValueError, match="span"):
        attend(
            kernels,
            torch.ones(2, 3, 8),
            cos=torch.ones(2, 4),
            sin=torch.ones(2, 4),
            slots=torch.tensor([0, 1]),
            spans=[span],
            storage=storage,
            layer=0,
            num_heads=1,
        )
    assert storage.isnan().all()


def test_a_slot_outside_the_cache_is_refused(kernels: Library) -> None:
    step = one_chunk(2, 0, torch.float32)
    cos, sin = (angle.float() for angle in step.angles())
    qkv, storage = torch.ones(2, step.heads.all, 64), step.storage(1).float()
    with pytest.raises(ValueError, match="slot"):
        attend(
            kernels,
            qkv,
            cos=cos,
            sin=sin,
            slots=torch.tensor([0, 16]),
            spans=step.spans,
            storage=storage,
            layer=0,
            num_heads=3,
        )
