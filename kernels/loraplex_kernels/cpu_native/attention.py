"""Attention of one layer over paged keys and values, alone: what a step does between its linears."""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from loraplex_kernels.cpu_native import structures
from loraplex_kernels.cpu_native.library import Library
from loraplex_kernels.cpu_native.packed import DTYPES, check, check_host


class Rows(Protocol):
    """Rows of one sequence: the last ``num_rows`` tokens of its context, which lies in ``page_ids``."""

    @property
    def start_row(self) -> int: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def context_len(self) -> int: ...
    @property
    def page_ids(self) -> Sequence[int]: ...


class SpanTable:
    """The sequences of a step, spelled out. Keeps what it points to alive."""

    def __init__(self, spans: Sequence[Rows]) -> None:
        self.num_spans = len(spans)
        fields: list[int] = []
        pages: list[int] = []
        for span in spans:
            fields += (span.start_row, span.num_rows, span.context_len, len(pages))
            pages += span.page_ids
        self.spans = torch.tensor(fields, dtype=torch.int32)
        self.pages = torch.tensor(pages, dtype=torch.int32)

    def batch(self, slots: Tensor, cos: Tensor, sin: Tensor) -> structures.Batch:
        """What the kernels read, without hidden states and adapters."""
        return structures.Batch(
            num_rows=slots.shape[0],
            num_spans=self.num_spans,
            num_page_ids=self.pages.shape[0],
            spans=self.spans.data_ptr(),
            pages=self.pages.data_ptr(),
            slots=slots.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
        )


def cache_of(storage: Tensor) -> structures.Cache:
    """[num_pages, num_layers, 2, num_kv_heads, page_size, head_dim] as the kernels read it."""
    num_pages, num_layers, _, _, page_size, _ = storage.shape
    return structures.Cache(storage=storage.data_ptr(), num_layers=num_layers, page_size=page_size, num_pages=num_pages)


def attend(
    library: Library,
    qkv: Tensor,
    *,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    spans: Sequence[Rows],
    storage: Tensor,
    layer: int,
    num_heads: int,
    window: int | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """Rotate queries and keys, store keys and values, attend.

    Args:
        library: the kernels.
        qkv: [T, num_heads + 2 * num_kv_heads, head_dim] float32; queries and keys are rotated in place.
        cos: [T, head_dim / 2] float32.
        sin: the same.
        slots: [T] int64, where each row's keys and values go: page_id * page_size + offset.
        spans: cover the rows in order.
        storage: [num_pages, num_layers, 2, num_kv_heads, page_size, head_dim], float32 or bfloat16.
        layer: which.
        num_heads: query heads.
        window: how many of the last positions a row sees; None = all.
        num_threads: torch's own number if None.

    Returns:
        [T, num_heads * head_dim] float32.

    Raises:
        ValueError: dtypes, shapes or strides that do not fit, or a span with too few pages.
    """
    check_host(qkv=qkv, cos=cos, sin=sin, slots=slots, storage=storage)
    num_layers, num_kv_heads, head_dim = storage.shape[1], storage.shape[3], storage.shape[5]
    num_rows = qkv.shape[0]
    fits = qkv.shape == (num_rows, num_heads + 2 * num_kv_heads, head_dim) and qkv.dtype == torch.float32
    fits = fits and storage.dtype in DTYPES and head_dim % 2 == 0
    check(fits, "qkv and storage do not fit", qkv=qkv, storage=storage)
    angles = cos.shape == sin.shape == (num_rows, head_dim // 2) and cos.dtype == sin.dtype == torch.float32
    check(
        angles and slots.shape == (num_rows,) and slots.dtype == torch.int64,
        "cos, sin and slots are of each row",
        cos=cos,
        sin=sin,
        slots=slots,
    )
    table = SpanTable(spans)
    layers = (structures.Layer * num_layers)()
    layers[layer].window = window or 0
    model = structures.Model(
        layers=layers,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=DTYPES[storage.dtype],
    )
    cache = cache_of(storage)
    batch = table.batch(slots, cos, sin)
    check_step(library, cache, batch)
    threads = num_threads or torch.get_num_threads()
    num_bytes = library.attention_scratch(ctypes.byref(model), ctypes.byref(batch), threads)
    scratch = torch.empty(num_bytes + 64, dtype=torch.uint8)
    out = torch.empty(num_rows, num_heads * head_dim, dtype=torch.float32)
    library.attention(
        threads,
        ctypes.byref(model),
        ctypes.byref(cache),
        ctypes.byref(batch),
        layer,
        qkv.data_ptr(),
        out.data_ptr(),
        -(-scratch.data_ptr() // 64) * 64,
    )
    return out


def check_step(library: Library, cache: structures.Cache, batch: structures.Batch) -> None:
    """Raise ValueError unless spans cover the rows in order, with pages for their contexts, all within the cache."""
    misfit = library.first_misfit(ctypes.byref(cache), ctypes.byref(batch))
    if misfit == batch.num_spans:
        raise ValueError(f"the spans do not cover {batch.num_rows} rows, or a slot lies outside the cache")
    if misfit >= 0:
        given = f"{cache.num_pages} pages of {cache.page_size}"
        raise ValueError(f"span {misfit} does not fit the rows before it, its pages, or the cache of {given}")
