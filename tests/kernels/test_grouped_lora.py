"""The grouped CPU implementation against the float64 row-by-row specification."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loraplex_kernels.lora import grouped_cpu, reference
from loraplex_kernels.lora.segments import AdapterPairs, LoraBatch
from loraplex_kernels.lora.site_group import Expand, SiteGroup

IN_FEATURES, OUT_SITES = 13, (7, 1, 5)
RELATIVE_ERROR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads memory that nobody wrote reads NaN."""
    real = torch.empty

    def poisoned(*size: object, **options: object) -> Tensor:
        tensor: Tensor = real(*size, **options)  # type: ignore[call-overload]
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-(1 << 30))

    monkeypatch.setattr(torch, "empty", poisoned)


def random_group(ranks: list[int], seed: int) -> SiteGroup | None:
    """One adapter at three sites; rank 0 leaves the site out."""
    generator = torch.Generator().manual_seed(seed)
    expands, rank_start, out_start = [], 0, 0
    for rank, size in zip(ranks, OUT_SITES, strict=True):
        if rank:
            b = torch.randn(size, rank, generator=generator, dtype=torch.float64)
            site = Expand(
                rank_start=rank_start,
                rank_stop=rank_start + rank,
                out_start=out_start,
                out_stop=out_start + size,
                b=b,
                scale=0.5 + seed % 3,
                bias=torch.randn(size, generator=generator, dtype=torch.float64) if seed % 3 == 1 else None,
                gain=torch.randn(size, generator=generator, dtype=torch.float64) if seed % 3 == 2 else None,
            )
            expands.append(site)
        rank_start, out_start = rank_start + rank, out_start + size
    if not expands:
        return None
    a = torch.randn(rank_start, IN_FEATURES, generator=generator, dtype=torch.float64)
    return SiteGroup(a=a, expands=tuple(expands))


def _cast(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if vector is None else vector.to(dtype)


def cast(group: SiteGroup | None, dtype: torch.dtype) -> SiteGroup | None:
    if group is None:
        return None
    expands = tuple(
        dataclasses.replace(site, b=site.b.to(dtype), bias=_cast(site.bias, dtype), gain=_cast(site.gain, dtype))
        for site in group.expands
    )
    return SiteGroup(a=group.a.to(dtype), expands=expands)


adapters = st.lists(st.lists(st.sampled_from([0, 1, 2, 8, 33]), min_size=3, max_size=3), min_size=1, max_size=6)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[SiteGroup | None], list[AdapterPairs]]:
    groups = [random_group(ranks, seed) for seed, ranks in enumerate(draw(adapters))]
    pair = st.tuples(st.integers(0, len(groups) - 1), st.sampled_from([1.0, 1.0, -0.25, 0.0, 3.0]))
    run = st.tuples(st.integers(0, 9), st.lists(pair, max_size=3).map(tuple))
    runs: list[tuple[int, AdapterPairs]] = draw(st.lists(run, max_size=12))
    return groups, [pairs for count, pairs in runs for _ in range(count)]


def compare(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    scale = torch.linalg.norm(wanted) + 1e-30
    assert float(torch.linalg.norm(got.double() - wanted) / scale) < RELATIVE_ERROR[dtype]


@given(batches(), st.sampled_from(list(RELATIVE_ERROR)))
@settings(max_examples=150, deadline=None)
def test_grouped_equals_the_specification(
    batch_of: tuple[list[SiteGroup | None], list[AdapterPairs]], dtype: torch.dtype
) -> None:
    groups64, rows = batch_of
    generator = torch.Generator().manual_seed(len(rows))
    x = torch.randn(len(rows), IN_FEATURES, generator=generator, dtype=torch.float64)
    base = torch.randn(len(rows), sum(OUT_SITES), generator=generator, dtype=torch.float64)
    batch = LoraBatch.from_rows(rows)
    if batch is None:
        assert not any(rows)
        return
    groups = [cast(group, dtype) for group in groups64]
    out = base.to(dtype, copy=True)
    grouped_cpu.add_lora(x.to(dtype), out, batch, groups)
    compare(out, reference.lora_rows(x, base, rows, groups64), dtype)
    untouched = [row for row, pairs in enumerate(rows) if not pairs]
    assert torch.equal(out[untouched], base.to(dtype)[untouched])


@given(batches())
@settings(max_examples=80, deadline=None)
def test_float32_adapters_on_a_bfloat16_base_round_only_once(
    batch_of: tuple[list[SiteGroup | None], list[AdapterPairs]],
) -> None:
    groups64, rows = batch_of
    batch = LoraBatch.from_rows(rows)
    if batch is None:
        return
    generator = torch.Generator().manual_seed(len(rows))
    x = torch.randn(len(rows), IN_FEATURES, generator=generator).to(torch.bfloat16)
    base = torch.randn(len(rows), sum(OUT_SITES), generator=generator).to(torch.bfloat16)
    out = base.clone()
    grouped_cpu.add_lora(x, out, batch, [cast(group, torch.float32) for group in groups64])
    wanted = reference.lora_rows(x.double(), base.double(), rows, groups64)
    half_unit = wanted.abs() * 2.0**-8 + 1e-4
    assert bool(((out.double() - wanted).abs() <= half_unit).all())


@given(batches(), st.sampled_from(list(RELATIVE_ERROR)))
@settings(max_examples=60, deadline=None)
def test_grouped_embedding_equals_the_specification(
    batch_of: tuple[list[SiteGroup | None], list[AdapterPairs]], dtype: torch.dtype
) -> None:
    groups64, rows = batch_of
    generator = torch.Generator().manual_seed(len(rows))
    token_ids = torch.randint(0, IN_FEATURES, (len(rows),), generator=generator)
    base = torch.randn(len(rows), sum(OUT_SITES), generator=generator, dtype=torch.float64)
    batch = LoraBatch.from_rows(rows)
    if batch is None:
        return
    out = base.to(dtype, copy=True)
    grouped_cpu.add_lora_embedding(token_ids, out, batch, [cast(group, dtype) for group in groups64])
    compare(out, reference.lora_embedding_rows(token_ids, base, rows, groups64), dtype)


@given(batches())
@settings(max_examples=100, deadline=None)
def test_segments_name_each_row_of_each_adapter_once(
    batch_of: tuple[list[SiteGroup | None], list[AdapterPairs]],
) -> None:
    _, rows = batch_of
    batch = LoraBatch.from_rows(rows)
    seen: dict[int, dict[int, float]] = {row: {} for row in range(len(rows))}
    for segment in batch.segments if batch is not None else ():
        index = range(segment.start, segment.stop) if segment.index is None else segment.index.tolist()
        weights = [segment.weight] * segment.num_rows if segment.row_weights is None else segment.row_weights.view(-1)
        for row, weight in zip(index, weights, strict=True):
            assert segment.adapter not in seen[row]
            seen[row][segment.adapter] = float(weight)
    for row, pairs in enumerate(rows):
        wanted: dict[int, float] = {}
        for adapter, weight in pairs:
            wanted[adapter] = wanted.get(adapter, 0.0) + weight
        assert seen[row] == pytest.approx(wanted)


def test_select_describes_the_chosen_rows_in_their_new_order() -> None:
    batch = LoraBatch.from_runs([(2, ((0, 1.0),)), (1, ()), (3, ((1, 0.5), (0, 2.0)))])
    assert batch is not None
    chosen = batch.select([5, 2, 0])
    assert chosen is not None
    assert chosen.runs == ((1, ((1, 0.5), (0, 2.0))), (1, ()), (1, ((0, 1.0),)))
    assert batch.select([2]) is None


Mutation = Callable[[list[SiteGroup | None]], list[SiteGroup | None]]


def _without_scale(groups: list[SiteGroup | None]) -> list[SiteGroup | None]:
    return [
        group and SiteGroup(a=group.a, expands=tuple(dataclasses.replace(site, scale=1.0) for site in group.expands))
        for group in groups
    ]


def _without_a_site(groups: list[SiteGroup | None]) -> list[SiteGroup | None]:
    return [group and SiteGroup(a=group.a, expands=group.expands[1:]) for group in groups]


MUTATIONS: dict[str, Mutation] = {
    "two adapters swapped": lambda groups: [groups[1], groups[0], *groups[2:]],
    "scale dropped": _without_scale,
    "a module skipped": _without_a_site,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("rows_per_adapter", [1, 3])
def test_the_comparison_notices(mutation: str, rows_per_adapter: int) -> None:
    groups = [random_group([4, 2, 3], seed) for seed in (3, 4, 5)]
    rows: list[AdapterPairs] = [((adapter, 1.0),) for adapter in range(3) for _ in range(rows_per_adapter)]
    x = torch.randn(len(rows), IN_FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base = torch.zeros(len(rows), sum(OUT_SITES), dtype=torch.float64)
    batch = LoraBatch.from_rows(rows)
    assert batch is not None
    wanted = reference.lora_rows(x, base, rows, groups)
    right, wrong = base.clone(), base.clone()
    grouped_cpu.add_lora(x, right, batch, groups)
    grouped_cpu.add_lora(x, wrong, batch, MUTATIONS[mutation](groups))
    assert torch.allclose(right, wanted)
    assert not torch.allclose(wrong, wanted, atol=0.1)


@pytest.mark.parametrize(
    ("x_shape", "out_shape", "out_dtype", "num_groups"),
    [
        ((3, 13), (4, 13), torch.float32, 1),
        ((4, 12), (4, 13), torch.float32, 1),
        ((4, 13), (4, 5), torch.float32, 1),
        ((4, 13), (4, 13), torch.bfloat16, 1),
        ((4, 13), (4, 13), torch.float32, 0),
    ],
)
def test_operands_that_do_not_fit_are_refused_and_out_is_left_alone(
    x_shape: tuple[int, int], out_shape: tuple[int, int], out_dtype: torch.dtype, num_groups: int
) -> None:
    batch = LoraBatch.from_rows([((0, 1.0),)] * 4)
    assert batch is not None
    out = torch.zeros(out_shape, dtype=out_dtype)
    groups = [cast(random_group([1, 1, 1], 0), torch.float32)] * num_groups
    with pytest.raises(ValueError, match=r"\d"):
        grouped_cpu.add_lora(torch.ones(x_shape), out, batch, groups)
    assert not out.any()


def test_a_negative_adapter_index_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        LoraBatch.from_rows([((-1, 1.0),)])
