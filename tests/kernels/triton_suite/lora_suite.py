"""LoRA over segments of rows, weights in pages: equal to the row-by-row specification."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.kernels.triton_suite.device import DEVICE, DTYPES, assert_close, nan, poisoned_memory, randn, relative_error
from torch import Tensor

from loraplex_kernels.lora import reference
from loraplex_kernels.lora.adapter_table import AdapterTable, GroupShape, SiteTable
from loraplex_kernels.lora.configs import LoraConfig
from loraplex_kernels.lora.launcher import LoraScratch, add_lora
from loraplex_kernels.lora.plan import HostPlan, PlanBuffers, PlanCapacity, plan_runs
from loraplex_kernels.lora.segments import AdapterPairs
from loraplex_kernels.lora.site_group import Expand, SiteGroup

__all__ = ["poisoned_memory"]

PAGE = 512
QKV = GroupShape(in_features=72, out_sizes=(40, 24, 24))
GATE_UP = GroupShape(in_features=33, out_sizes=(48, 48))
DOWN = GroupShape(in_features=160, out_sizes=(17,))
Runs = Sequence[tuple[int, AdapterPairs]]


def config(block_m: int, splits: int = 2) -> LoraConfig:
    """Blocks that leave remainders everywhere at the sizes above."""
    return LoraConfig(
        block_m=block_m,
        block_r=16,
        block_k=32,
        block_n=32,
        expand_r=16,
        splits=splits,
        num_warps=4,
        num_stages=2,
        expand_stages=1,
        programs_per_sm=1 if DEVICE.type == "cuda" else 3,
    )


def random_group(shape: GroupShape, ranks: Sequence[int], seed: int, dtype: torch.dtype) -> SiteGroup | None:
    """Weights as ``dtype`` has them; rank 0 leaves a site out."""
    expands, rank_start, out_start = [], 0, 0
    for rank, size in zip(ranks, shape.out_sizes, strict=True):
        if rank:
            b = randn(size, rank, seed=seed * 7 + out_start, dtype=dtype) * 0.5
            rank_stop, out_stop, scale = rank_start + rank, out_start + size, 0.5 + 0.25 * (seed % 5)
            site = Expand(
                rank_start=rank_start, rank_stop=rank_stop, out_start=out_start, out_stop=out_stop, b=b, scale=scale
            )
            expands.append(site)
        rank_start, out_start = rank_start + rank, out_start + size
    a = randn(rank_start, shape.in_features, seed=seed, dtype=dtype) * 0.2
    return SiteGroup(a=a, expands=tuple(expands)) if expands else None


def widened(group: SiteGroup | None) -> SiteGroup | None:
    if group is None:
        return None
    expands = tuple(dataclasses.replace(expand, b=expand.b.double().cpu()) for expand in group.expands)
    return SiteGroup(a=group.a.double().cpu(), expands=expands)


@dataclasses.dataclass
class Case:
    """One group of sites, adapters in scattered pages of a poisoned pool, and a batch."""

    shape: GroupShape
    groups: list[SiteGroup | None]
    table: AdapterTable
    pool: Tensor
    runs: Runs
    x: Tensor
    base: Tensor

    @classmethod
    def make(cls, shape: GroupShape, ranks: Sequence[Sequence[int]], runs: Runs, dtype: torch.dtype) -> "Case":
        groups = [random_group(shape, site_ranks, seed, dtype) for seed, site_ranks in enumerate(ranks, 1)]
        widest = max(max(site_ranks) for site_ranks in ranks)
        num_slices = 2 * sum(map(sum, ranks))
        table = AdapterTable(
            [shape], num_slots=len(groups), num_slices=num_slices, page_elements=PAGE, max_rank=widest, device=DEVICE
        )
        counts = [table.num_pages([group]) for group in groups]
        pool = nan((sum(counts) + 3) * PAGE, dtype=dtype)
        # Neither neighbours nor in order: every page table is a permutation.
        pages = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(5)).tolist()
        for slot, (group, count) in enumerate(zip(groups, counts, strict=True)):
            table.place(slot, [group], pool, [pages.pop() for _ in range(count)])
        num_rows = sum(count for count, _ in runs)
        x = randn(num_rows, shape.in_features, seed=91, dtype=dtype)
        return cls(shape, groups, table, pool, runs, x, randn(num_rows, sum(shape.out_sizes), seed=92, dtype=dtype))

    def plan(self, block_m: int) -> HostPlan:
        return plan_runs(self.runs, self.table.slot_ranks, block_m=block_m, block_r=16)

    def wanted(self) -> Tensor:
        rows = [pairs for count, pairs in self.runs for _ in range(count)]
        wide = [widened(group) for group in self.groups]
        return reference.lora_rows(self.x.double().cpu(), self.base.double().cpu(), rows, wide).to(DEVICE)

    def run(
        self,
        block_m: int,
        *,
        splits: int = 2,
        fused: bool = True,
        table: SiteTable | None = None,
        plan: HostPlan | None = None,
    ) -> Tensor:
        buffers = PlanBuffers.of(plan or self.plan(block_m), device=DEVICE)
        site_table = table or self.table.group(0)
        scratch = LoraScratch.reserve(
            num_pairs=buffers.capacity.num_pairs,
            num_sites=len(self.shape.out_sizes),
            max_rank=max(buffers.max_rank, 1),
            splits=splits,
            device=DEVICE,
        )
        out = self.base.clone()
        add_lora(self.x, out, buffers, site_table, self.pool, scratch, config(block_m, splits), fused=fused)
        return out


MIXED: Runs = [
    (1, ((0, 1.0),)),
    (2, ()),
    (3, ((1, 1.0),)),
    (1, ((0, 0.5), (2, -1.5))),
    (1, ((2, 2.0),)),
    (0, ((1, 1.0),)),
    (5, ((2, 1.0),)),
    (1, ((2, 0.25), (0, 1.0))),
    (1, ((1, 1.0), (1, 1.0))),
    (1, ()),
]
RANKS: dict[GroupShape, list[Sequence[int]]] = {
    QKV: [(8, 1, 33), (3, 0, 5), (16, 17, 2)],
    GATE_UP: [(1, 1), (0, 20), (16, 8)],
    DOWN: [(9,), (1,), (40,)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_m", [1, 4, 16])
@pytest.mark.parametrize("shape", RANKS, ids=["qkv", "gate_up", "down"])
def test_mixed_ranks_rows_and_compositions_equal_the_specification(
    shape: GroupShape, block_m: int, dtype: torch.dtype
) -> None:
    case = Case.make(shape, RANKS[shape], MIXED, dtype)
    out = case.run(block_m)
    assert_close(out, case.wanted(), dtype)
    untouched = [row for row, pairs in enumerate(pairs for n, pairs in MIXED for _ in range(n)) if not pairs]
    assert torch.equal(out[untouched], case.base[untouched])


@pytest.mark.parametrize("block_m", [1, 4, 16])
@pytest.mark.parametrize("splits", [1, 3])
def test_two_launches_of_many_programs_give_what_one_gives(block_m: int, splits: int) -> None:
    case = Case.make(QKV, RANKS[QKV], MIXED, torch.float32)
    assert_close(case.run(block_m, splits=splits, fused=False), case.wanted(), torch.float32)


@pytest.mark.parametrize("rank", [1, 512])
@pytest.mark.parametrize("block_m", [1, 16])
def test_the_lowest_and_the_highest_rank(rank: int, block_m: int) -> None:
    shape = GroupShape(in_features=32, out_sizes=(16,))
    case = Case.make(shape, [(rank,), (1,)], [(1, ((0, 1.0),)), (1, ((1, 1.0),))], torch.float32)
    assert_close(case.run(block_m, splits=1), case.wanted(), torch.float32)


def test_pages_of_one_slice_and_pages_of_many() -> None:
    # 512 elements a page: rows of 500 take one each, rows of 8 share it by the dozen.
    shape = GroupShape(in_features=500, out_sizes=(8,))
    case = Case.make(shape, [(21,), (2,)], [(2, ((0, 1.0),)), (1, ((1, 1.0),))], torch.float32)
    assert_close(case.run(4), case.wanted(), torch.float32)


@pytest.mark.parametrize("pattern", ["identical", "distinct", "base only", "no rows"])
@pytest.mark.parametrize("block_m", [1, 16])
def test_patterns_of_popularity(pattern: str, block_m: int) -> None:
    patterns: dict[str, Runs] = {
        "identical": [(1, ((1, 1.0),))] * 18,
        "distinct": [(1, ((slot, 1.0),)) for slot in (2, 0, 1)],
        "base only": [(4, ())],
        "no rows": [],
    }
    case = Case.make(DOWN, RANKS[DOWN], patterns[pattern], torch.float32)
    assert_close(case.run(block_m), case.wanted(), torch.float32)


def test_strided_rows() -> None:
    case = Case.make(DOWN, RANKS[DOWN], MIXED, torch.float32)
    wanted = case.wanted()
    case.x = torch.cat((nan(*case.x.shape, dtype=torch.float32), case.x), 1)[:, case.x.shape[1] :]
    case.base = torch.cat((case.base, case.base), 1)[:, : case.base.shape[1]]
    assert_close(case.run(4), wanted, torch.float32)


def test_rewritten_buffers_leave_nothing_of_the_last_step() -> None:
    """What a replayed CUDA graph sees: the same launch over buffers with another plan."""
    first = Case.make(QKV, RANKS[QKV], MIXED, torch.float32)
    for runs in ([(2, ()), (1, ((1, 1.0),)), (13, ())], [(16, ())], MIXED):
        case = dataclasses.replace(first, runs=runs)
        plan = case.plan(4)
        if runs == [(2, ()), (1, ((1, 1.0),)), (13, ())]:
            buffers = PlanBuffers(PlanCapacity.of(first.plan(4)), block_m=4, block_r=16, device=DEVICE)
            scratch = LoraScratch.reserve(
                num_pairs=buffers.capacity.num_pairs, num_sites=3, max_rank=33, splits=2, device=DEVICE
            )
            buffers.write(first.plan(4))
        buffers.write(plan)
        out = first.base.clone()
        add_lora(first.x, out, buffers, first.table.group(0), first.pool, scratch, config(4), max_rank=33)
        assert_close(out, case.wanted(), torch.float32)


def test_a_slot_is_used_again_after_its_adapter_left() -> None:
    case = Case.make(QKV, RANKS[QKV], MIXED, torch.float32)
    case.table.remove(1)
    with pytest.raises(ValueError, match="slot 1 holds no adapter"):
        case.plan(4)
    case.groups[1] = random_group(QKV, (2, 2, 2), 44, torch.float32)
    pages = case.table.num_pages([case.groups[1]])
    fresh = torch.cat((case.pool, nan(pages * PAGE, dtype=torch.float32)))
    first = len(case.pool) // PAGE
    case.pool = fresh
    case.table.place(1, [case.groups[1]], fresh, list(range(first, first + pages)))
    assert_close(case.run(4), case.wanted(), torch.float32)


def _swap_pages(case: Case) -> SiteTable:
    """The page tables of two slots mixed up by one entry."""
    table = case.table.group(0)
    slices = table.slices.clone()
    slices[[0, 8]] = slices[[8, 0]]
    return dataclasses.replace(table, slices=slices)


def _change_scale(case: Case) -> SiteTable:
    table = case.table.group(0)
    scales = table.scales.clone()
    scales[2, 1] *= 1.01
    return dataclasses.replace(table, scales=scales)


def _lower_rank(case: Case) -> SiteTable:
    table = case.table.group(0)
    sites = table.sites.clone()
    sites[0, 2, 0] -= 1
    return dataclasses.replace(table, sites=sites)


@pytest.mark.parametrize("damage", [_swap_pages, _change_scale, _lower_rank])
@pytest.mark.parametrize("block_m", [1, 16])
def test_a_wrong_table_is_noticed(damage, block_m: int) -> None:
    case = Case.make(QKV, RANKS[QKV], MIXED, torch.float32)
    assert relative_error(case.run(block_m, table=damage(case)), case.wanted()) > 1e-4


def _other_row(plan: HostPlan) -> None:
    plan.rows[0], plan.rows[1] = plan.rows[1], plan.rows[0]


def _other_slot(plan: HostPlan) -> None:
    plan.adapters[-1] = 0


def _other_weight(plan: HostPlan) -> None:
    plan.weights[3] *= 1.01


def _lost_tile(plan: HostPlan) -> None:
    plan.expand_tiles.pop()


@pytest.mark.parametrize("damage", [_other_row, _other_slot, _other_weight, _lost_tile])
def test_a_wrong_plan_is_noticed(damage) -> None:
    case = Case.make(QKV, RANKS[QKV], MIXED, torch.float32)
    plan = case.plan(4)
    damage(plan)
    assert relative_error(case.run(4, plan=plan), case.wanted()) > 1e-4


def test_operands_that_do_not_fit_are_refused_by_name() -> None:
    case = Case.make(DOWN, RANKS[DOWN], MIXED, torch.float32)
    changes: list[dict[str, Any]] = [
        {"x": case.x[:, :-1]},
        {"x": case.x.double()},
        {"base": case.base[:-1]},
        {"pool": case.pool.half()},
    ]
    for change in changes:
        with pytest.raises(ValueError, match=r"got .*float"):
            dataclasses.replace(case, **change).run(4)
    with pytest.raises(ValueError, match=r"needs \d+ pages, 0 given"):
        AdapterTable([DOWN], num_slots=1, num_slices=99, page_elements=PAGE, device=DEVICE).place(
            0, [case.groups[0]], case.pool, []
        )


def test_sixty_four_adapters_of_rank_8_and_one_of_256_take_their_true_size() -> None:
    """Llama-3-8B's shapes, pages of 2 MiB of bfloat16: within 5 % of the sum of the sizes."""
    layer = [
        GroupShape(in_features=4096, out_sizes=(4096, 1024, 1024)),
        GroupShape(in_features=4096, out_sizes=(4096,)),
        GroupShape(in_features=4096, out_sizes=(14336, 14336)),
        GroupShape(in_features=14336, out_sizes=(4096,)),
    ]
    table = AdapterTable(layer * 32, num_slots=65, num_slices=1, page_elements=1 << 20)

    def adapter(rank: int) -> list[SiteGroup]:
        return [_shape_only(shape, rank) for shape in layer] * 32

    pages = 64 * table.num_pages(adapter(8)) + table.num_pages(adapter(256))
    elements = 64 * sum(map(_elements, adapter(8))) + sum(map(_elements, adapter(256)))
    assert elements <= pages << 20 <= elements * 1.05


def _shape_only(shape: GroupShape, rank: int) -> SiteGroup:
    expands, start = [], 0
    for index, size in enumerate(shape.out_sizes):
        first, last = index * rank, (index + 1) * rank
        b = torch.zeros(1, 1).expand(size, rank)
        site = Expand(rank_start=first, rank_stop=last, out_start=start, out_stop=start + size, b=b, scale=1.0)
        expands.append(site)
        start += size
    a = torch.zeros(1, 1).expand(rank * len(expands), shape.in_features)
    return SiteGroup(a=a, expands=tuple(expands))


def _elements(group: SiteGroup) -> int:
    return group.a.numel() + sum(expand.b.numel() for expand in group.expands)
