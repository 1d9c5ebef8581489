"""Paged storage of keys and values.

Page-major: everything that a page holds, for all layers, K and V, is one contiguous block, so that a page is the
unit of allocation for KV and adapters alike.
"""

import torch
from torch import Tensor


class KvCache:
    """[num_pages, num_layers, 2 (K, V), page_size, num_kv_heads, head_dim].

    The pool decides who owns a page; the cache only stores. A page is cleared when its first slot (offset 0) is
    written, thus leftovers of an earlier owner, NaN included, are never read, even behind a mask.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve the storage. It is zeroed lazily by the system, so untouched pages cost no memory on CPU."""
        self.num_layers = num_layers
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        shape = (num_pages, num_layers, 2, page_size, num_kv_heads, head_dim)
        self.storage = torch.zeros(shape, dtype=dtype, device=device)
        self._token_rows = self.storage.view(-1, num_kv_heads * head_dim)
        self._page_blocks = self.storage.view(-1, page_size * num_kv_heads * head_dim)

    @staticmethod
    def bytes_per_page(*, num_layers: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Size of one page over all layers."""
        return num_layers * 2 * page_size * num_kv_heads * head_dim * dtype.itemsize

    @property
    def page_bytes(self) -> int:
        """Size of one page over all layers."""
        return self.storage[0].numel() * self.storage.element_size()

    def open_pages(self, slots: Tensor) -> None:
        """Clear the pages whose offset 0 is among ``slots`` [T]. Once per step, before the first ``write``."""
        pages = slots[slots % self.page_size == 0] // self.page_size
        if pages.numel():
            self.storage.index_fill_(0, pages, 0)

    def write_rows(self, slots: Tensor) -> Tensor:
        """Precompute, once per step, where ``write`` puts K of layer 0: [T] int64 rows of the token-row view."""
        page, offset = slots // self.page_size, slots % self.page_size
        return page * (self.num_layers * 2 * self.page_size) + offset

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [T, num_kv_heads * head_dim] keys and values of one layer; ``rows`` come from ``write_rows``."""
        at = rows + layer * 2 * self.page_size
        self._token_rows.index_copy_(0, at, keys)
        self._token_rows.index_copy_(0, at + self.page_size, values)

    def gather_blocks(self, page_ids: Tensor) -> Tensor:
        """Precompute, once per step, the K and V blocks of layer 0 of pages [...]: [2, ...] int64."""
        keys = page_ids * (self.num_layers * 2)
        return torch.stack((keys, keys + 1))

    def gather(self, layer: int, blocks: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """K and V of padded page tables.

        Args:
            layer: which layer.
            blocks: [2, B, P] from ``gather_blocks``.
            out: optional [2 * B * P, page_size * num_kv_heads * head_dim] buffer to fill.

        Returns:
            keys and values, each [B, P * page_size, num_kv_heads, head_dim].
        """
        flat = (blocks + layer * 2).view(-1)
        if out is None:
            taken = self._page_blocks.index_select(0, flat)
        else:
            taken = torch.index_select(self._page_blocks, 0, flat, out=out)
        _, rows, pages = blocks.shape
        both = taken.view(2, rows, pages * self.page_size, self.num_kv_heads, self.head_dim)
        return both[0], both[1]
