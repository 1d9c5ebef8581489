"""The identity of an adapter version: SHA-256 over a canonical form of what it computes.

Two folders have the same digest exactly when they change the base model in the same way with the same bytes. File
order, JSON order, unused PEFT fields, base model name and the way a scale was spelt (alpha and r, pattern or rsLoRA)
do not count. Every item is framed, so that no two different adapters have the same canonical form:

    frame(x)  = u64 little-endian length of x, then x
    payload   = SHA-256( frame("loraplex.adapter.payload.v1") · u64 number of tensors ·
                         for each tensor, by name: frame(name) · frame(dtype) · u64 ndim · u64 each dim · frame(data) )
    digest    = SHA-256( frame("loraplex.adapter.v1") · frame(kind) · frame(dtype) · u64 num_bytes ·
                         u64 number of sites · for each site, in site order: frame(key) · u64 rank · frame(scale) ·
                         frame(payload) )

A scale is the text of its IEEE 754 double in Python's ``float.hex`` form. The digest has two levels so that a stored
spec can be checked against its digest without reading the weights.
"""

import hashlib
from collections.abc import Iterable, Mapping

from loraplex_adapters.spec import LoraSite, site_key, site_order
from loraplex_adapters.tensor import TensorBytes


def payload_digest(tensors: Mapping[str, TensorBytes]) -> bytes:
    """32 bytes that identify the names, dtypes, shapes and bytes of ``tensors``, in whatever order they come."""
    hasher = _FramedHash(b"loraplex.adapter.payload.v1")
    hasher.number(len(tensors))
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        hasher.frame(name.encode())
        hasher.frame(dtype.encode())
        hasher.number(len(shape))
        for dim in shape:
            hasher.number(dim)
        hasher.frame(data)
    return hasher.digest()


def adapter_digest(*, kind: str, dtype: str, num_bytes: int, sites: Iterable[LoraSite], payload: bytes) -> str:
    """The version's digest, 64 hex digits, from its semantic config and its ``payload_digest``."""
    ordered = sorted(sites, key=site_order)
    hasher = _FramedHash(b"loraplex.adapter.v1")
    hasher.frame(kind.encode())
    hasher.frame(dtype.encode())
    hasher.number(num_bytes)
    hasher.number(len(ordered))
    for site in ordered:
        hasher.frame(site_key(site).encode())
        hasher.number(site.rank)
        hasher.frame(site.scale.hex().encode())
    hasher.frame(payload)
    return hasher.digest().hex()


class _FramedHash:
    """SHA-256 over length-delimited items."""

    def __init__(self, domain: bytes) -> None:
        self._hash = hashlib.sha256()
        self.frame(domain)

    def number(self, value: int) -> None:
        self._hash.update(value.to_bytes(8, "little"))

    def frame(self, data: bytes) -> None:
        self.number(len(data))
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()
