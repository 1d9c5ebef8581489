"""Random steps over a poisoned paged cache, in float64, for the tests of attention and of whole layers."""

import dataclasses
import math

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One sequence of a step."""

    start_row: int
    num_rows: int
    context_len: int
    page_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Sizes of attention."""

    num_kv_heads: int
    group: int
    head_dim: int

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def all(self) -> int:
        return self.num_heads + 2 * self.num_kv_heads


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The sequences of a step and where their rows go."""

    spans: list[Rows]
    page_size: int
    num_pages: int
    heads: Heads
    dtype: torch.dtype

    @property
    def num_rows(self) -> int:
        return sum(span.num_rows for span in self.spans)

    def slots(self) -> Tensor:
        positions = [
            (span, at) for span in self.spans for at in range(span.context_len - span.num_rows, span.context_len)
        ]
        return torch.tensor([self._slot(span, at) for span, at in positions])

    def positions(self) -> Tensor:
        return torch.cat([torch.arange(span.context_len - span.num_rows, span.context_len) for span in self.spans])

    def page_table(self) -> Tensor:
        longest = max(len(span.page_ids) for span in self.spans)
        return torch.tensor(
            [[*span.page_ids, *(0 for _ in range(longest - len(span.page_ids)))] for span in self.spans]
        )

    def storage(self, num_layers: int) -> Tensor:
        """NaN in every page that nobody owns, and behind the context of those that somebody owns."""
        heads = self.heads
        shape = (self.num_pages, num_layers, 2, heads.num_kv_heads, self.page_size, heads.head_dim)
        storage = torch.full(shape, math.nan, dtype=torch.float64)
        for span in self.spans:
            for at in range(span.context_len - span.num_rows):
                page, offset = divmod(self._slot(span, at), self.page_size)
                storage[page, :, :, :, offset] = random_tensor(*shape[1:4], shape[5], seed=page * 64 + offset)
        return storage

    def angles(self) -> tuple[Tensor, Tensor]:
        """cos and sin of each row, [T, head_dim / 2]."""
        half = self.heads.head_dim // 2
        phases = self.positions().unsqueeze(1).double() * 0.3 ** torch.arange(half).double()
        return phases.cos(), phases.sin()

    def _slot(self, span: Rows, position: int) -> int:
        page, offset = divmod(position, self.page_size)
        return span.page_ids[page] * self.page_size + offset


def random_tensor(*shape: int, seed: int) -> Tensor:
    """float64, every element a bfloat16 number."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(torch.bfloat16).double()


@st.composite
def steps(draw: st.DrawFn, max_rows: int = 12, head_dims: tuple[int, ...] = (8, 20, 64, 70)) -> Step:
    """Decode rows and prefill chunks, some behind a context, over scrambled pages; a few pages stay free."""
    page_size = draw(st.sampled_from((1, 3, 16)))
    shapes = draw(st.lists(st.tuples(st.integers(1, max_rows), st.integers(0, 40)), min_size=1, max_size=10))
    sequences = [(rows if draw(st.booleans()) else 1, before) for rows, before in shapes]
    needed = [math.ceil((rows + before) / page_size) for rows, before in sequences]
    num_pages = sum(needed) + 3
    free = list(draw(st.permutations(range(num_pages))))
    spans, start = [], 0
    for (rows, before), count in zip(sequences, needed, strict=True):
        pages = tuple(free.pop() for _ in range(count))
        spans.append(Rows(start_row=start, num_rows=rows, context_len=rows + before, page_ids=pages))
        start += rows
    heads = Heads(
        num_kv_heads=draw(st.integers(1, 3)), group=draw(st.integers(1, 6)), head_dim=draw(st.sampled_from(head_dims))
    )
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16)))
    return Step(spans=spans, page_size=page_size, num_pages=num_pages, heads=heads, dtype=dtype)
