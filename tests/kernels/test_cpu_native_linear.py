"""The native linear with grouped LoRA, at every instruction set, against float64 row by row."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loraplex_kernels.cpu_native.adapter_groups import AdapterGroups, pack_group
from loraplex_kernels.cpu_native.library import Library
from loraplex_kernels.cpu_native.linear import NativeLinear
from loraplex_kernels.lora import reference as lora_reference
from loraplex_kernels.lora.segments import AdapterPairs, LoraBatch
from loraplex_kernels.lora.site_group import Expand, SiteGroup
from loraplex_kernels.norm import reference as norm_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
SIZES = (1, 7, 16, 33, 48, 49, 100)
RANKS = (0, 1, 2, 3, 8, 33, 256)
EPS = 1e-5
EXACT_INPUTS = {torch.float32: 2e-6, torch.bfloat16: 2e-6}
"""Where every input is a bfloat16 number, only the order of the float32 sums is free."""
ROUNDED_INPUTS = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


def random_tensor(*shape: int, seed: int) -> Tensor:
    """float64, every element a bfloat16 number."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(torch.bfloat16).double()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A linear and its input, in float64."""

    x: Tensor
    weights: list[Tensor]
    bias: Tensor | None
    dtype: torch.dtype

    def wanted(self, x: Tensor) -> Tensor:
        base = x @ torch.cat(self.weights).T
        return base if self.bias is None else base + self.bias

    def linear(self, kernels: Library) -> NativeLinear:
        return NativeLinear(kernels, [weight.to(self.dtype) for weight in self.weights], self.bias)


@st.composite
def cases(draw: st.DrawFn, max_rows: int = 40) -> Case:
    out_features = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=3))
    in_features, num_rows = draw(st.sampled_from((1, 13, 32, 33, 130))), draw(st.integers(0, max_rows))
    weights = [random_tensor(size, in_features, seed=number) for number, size in enumerate(out_features)]
    bias = random_tensor(sum(out_features), seed=9) if draw(st.booleans()) else None
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16)))
    return Case(x=random_tensor(num_rows, in_features, seed=8), weights=weights, bias=bias, dtype=dtype)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    scale = torch.linalg.norm(wanted) + 1e-30
    assert float(torch.linalg.norm(got.double() - wanted) / scale) <= tolerance


@given(case=cases(), num_threads=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_linear_equals_the_product_in_float64(kernels: Library, case: Case, num_threads: int) -> None:
    got = case.linear(kernels)(case.x.float(), num_threads=num_threads)
    assert_near(got, case.wanted(case.x), EXACT_INPUTS[case.dtype])


@given(case=cases())
@settings(max_examples=15, deadline=None)
def test_norm_before_the_product_equals_float64(kernels: Library, case: Case) -> None:
    norm = random_tensor(case.x.shape[1], seed=7)
    got = case.linear(kernels)(case.x.float(), norm=norm.float(), norm_eps=EPS, num_threads=2)
    assert_near(got, case.wanted(norm_reference.rms_norm(case.x, norm, EPS)), ROUNDED_INPUTS[case.dtype])


@given(case=cases(max_rows=20))
@settings(max_examples=10, deadline=None)
def test_a_row_is_the_same_to_the_bit_in_any_batch(kernels: Library, case: Case) -> None:
    linear, x = case.linear(kernels), case.x.float()
    together = linear(x, num_threads=2)
    for row in range(x.shape[0]):
        assert torch.equal(linear(x[row : row + 1].clone(), num_threads=1)[0], together[row])


def random_group(case: Case, ranks: list[int], seed: int, dtype: torch.dtype) -> SiteGroup | None:
    """One adapter over the sites of the case; rank 0 leaves the site out."""
    expands, rank_start, out_start = [], 0, 0
    for number, (rank, weight) in enumerate(zip(ranks, case.weights, strict=False)):
        size = weight.shape[0]
        if rank:
            b = (random_tensor(size, rank, seed=100 * seed + number) / rank).to(dtype)
            site = Expand(
                rank_start=rank_start,
                rank_stop=rank_start + rank,
                out_start=out_start,
                out_stop=out_start + size,
                b=b,
                scale=0.5 + seed % 3,
                bias=random_tensor(size, seed=200 * seed + number).to(dtype) if seed % 3 == 1 else None,
                gain=random_tensor(size, seed=300 * seed + number).to(dtype) if seed % 3 == 2 else None,
            )
            expands.append(site)
        rank_start, out_start = rank_start + rank, out_start + size
    if not expands:
        return None
    return SiteGroup(a=random_tensor(rank_start, case.x.shape[1], seed=1000 + seed).to(dtype), expands=tuple(expands))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraCase:
    """Rows of several adapters, weighted, of one, and of none."""

    case: Case
    groups: list[SiteGroup | None]
    rows: list[AdapterPairs]

    @property
    def batch(self) -> LoraBatch | None:
        return LoraBatch.from_rows(self.rows)

    def adapters(self, kernels: Library) -> list[AdapterGroups]:
        starts, column = [], 0
        for weight in self.case.weights:
            starts.append(column)
            column += weight.shape[0]
        packed = [None if group is None else pack_group(kernels, group) for group in self.groups]
        return [AdapterGroups([group], [starts]) for group in packed]

    def wanted(self) -> Tensor:
        base = self.case.wanted(self.case.x)
        return lora_reference.lora_rows(
            self.case.x, base, self.rows, [in_float64(group) for group in self.groups], self.case.bias
        )


def doubled(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.double()


def in_float64(group: SiteGroup | None) -> SiteGroup | None:
    if group is None:
        return None
    expands = tuple(
        dataclasses.replace(site, b=site.b.double(), bias=doubled(site.bias), gain=doubled(site.gain))
        for site in group.expands
    )
    return SiteGroup(a=group.a.double(), expands=expands)


@st.composite
def lora_cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> LoraCase:
    case = draw(cases(max_rows=0))
    site_ranks = st.lists(st.sampled_from(RANKS), min_size=3, max_size=3)
    ranks = draw(st.lists(site_ranks, min_size=1, max_size=6))
    dtype = draw(st.sampled_from(dtypes))
    groups = [random_group(case, given_ranks, seed, dtype) for seed, given_ranks in enumerate(ranks)]
    pair = st.tuples(st.integers(0, len(groups) - 1), st.sampled_from([1.0, 1.0, -0.25, 0.0, 3.0]))
    pairs = st.lists(pair, max_size=3, unique_by=lambda item: item[0]).map(tuple)
    runs: list[tuple[int, AdapterPairs]] = draw(st.lists(st.tuples(st.integers(0, 9), pairs), max_size=10))
    rows = [one for count, one in runs for _ in range(count)]
    x = random_tensor(len(rows), case.x.shape[1], seed=5)
    return LoraCase(case=dataclasses.replace(case, x=x), groups=groups, rows=rows)


@given(given_case=lora_cases(), num_threads=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_grouped_lora_equals_the_specification(kernels: Library, given_case: LoraCase, num_threads: int) -> None:
    x, linear = given_case.case.x.float(), given_case.case.linear(kernels)
    got = linear(x, lora=given_case.batch, adapters=given_case.adapters(kernels), num_threads=num_threads)
    is_float = all(group is None or group.a.dtype == torch.float32 for group in given_case.groups)
    # Between A and B a bfloat16 adapter's vector is rounded, as PEFT rounds it.
    assert_near(got, given_case.wanted(), 2e-6 if is_float else 6e-3)
    base = linear(x, num_threads=num_threads)
    untouched = [row for row, pairs in enumerate(given_case.rows) if not pairs]
    assert torch.equal(got[untouched], base[untouched])


@given(given_case=lora_cases())
@settings(max_examples=10, deadline=None)
def test_a_row_with_one_adapter_is_the_same_to_the_bit_in_any_batch(kernels: Library, given_case: LoraCase) -> None:
    x, linear, adapters = given_case.case.x.float(), given_case.case.linear(kernels), given_case.adapters(kernels)
    together = linear(x, lora=given_case.batch, adapters=adapters, num_threads=2)
    for row, pairs in enumerate(given_case.rows):
        if len(pairs) == 1:
            alone = LoraBatch.from_rows([pairs])
            assert torch.equal(linear(x[row : row + 1].clone(), lora=alone, adapters=adapters)[0], together[row])


def test_nan_in_one_row_reaches_no_other_row(kernels: Library) -> None:
    weights = [random_tensor(49, 33, seed=1).to(torch.bfloat16)]
    linear, x = NativeLinear(kernels, weights, None), random_tensor(9, 33, seed=2).float()
    clean = linear(x)
    x[4] = float("nan")
    got = linear(x)
    assert got[4].isnan().all()
    others = [row for row in range(9) if row != 4]
    assert torch.equal(got[others], clean[others])


def test_operands_that_do_not_fit_are_refused(kernels: Library) -> None:
    linear = NativeLinear(kernels, [torch.ones(5, 4)], None)
    group = SiteGroup(
        a=torch.ones(1, 3),
        expands=(Expand(rank_start=0, rank_stop=1, out_start=0, out_stop=5, b=torch.ones(5, 1), scale=1.0),),
    )
    adapter = AdapterGroups([pack_group(kernels, group)], [[0]])
    batch = LoraBatch.from_rows([((0, 1.0),)])
    with pytest.raises(ValueError, match="x must be"):
        linear(torch.ones(2, 3))
    with pytest.raises(ValueError, match="x must be"):
        linear(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="contiguous"):
        linear(torch.ones(4, 2).T)
    with pytest.raises(ValueError, match="norm"):
        linear(torch.ones(2, 4), norm=torch.ones(3))
    with pytest.raises(ValueError, match="1 rows"):
        linear(torch.ones(2, 4), lora=batch, adapters=[adapter])
    with pytest.raises(ValueError, match="does not fit 4"):
        linear(torch.ones(1, 4), lora=batch, adapters=[adapter])
    with pytest.raises(ValueError, match="packed"):
        AdapterGroups([group], [[0]])
    with pytest.raises(ValueError, match="begins at output"):
        AdapterGroups([pack_group(kernels, group)], [[3]])
    with pytest.raises(ValueError, match="weight must be"):
        NativeLinear(kernels, [torch.ones(5, 4, dtype=torch.float64)], None)
