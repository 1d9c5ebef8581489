"""Whether an embedding matrix that PEFT saved along with an adapter is the base model's own.

PEFT saves embed_tokens and lm_head of the base when they are targeted. Such a copy is accepted when it is what loading
the base in the copy's dtype gives: each base element is widened exactly to float32, rounded to the copy's dtype (to
nearest, ties to even), and then the bits must be equal. So a copy in the base's dtype must be byte-equal, one in a
wider dtype must hold exactly the same numbers, and one in a narrower dtype must hold the base's numbers rounded.
The base is read in blocks; it is never loaded whole.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loraplex_adapters.module import Module
from loraplex_adapters.tensor import ITEM_BYTES, TensorBytes
from loraplex_contract.errors import FailedPrecondition

_BLOCK_ITEMS = 1 << 20
_MAX_HEADER_BYTES = 100 << 20
_MAX_INDEX_BYTES = 64 << 20
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_BASE_NAMES = {Module.EMBED_TOKENS: "model.embed_tokens.weight", Module.LM_HEAD: "lm_head.weight"}


class _Place(NamedTuple):
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


def equals_base_weight(folder: Path, module: Module, saved: TensorBytes, *, is_tied: bool) -> bool:
    """Whether ``saved`` is the base model's own weight of embed_tokens or lm_head in ``saved``'s dtype.

    Args:
        folder: the base model's folder, with model.safetensors or a sharded index.
        is_tied: lm_head shares the weight of embed_tokens.

    Raises:
        FailedPrecondition: the base's tensor cannot be read (BASE_MODEL_UNREADABLE).
    """
    name = _BASE_NAMES[Module.EMBED_TOKENS if is_tied else module]
    try:
        place = _locate(folder, name)
        if place.shape != saved.shape or place.dtype not in ITEM_BYTES:
            return False
        return all(_same(block, place.dtype, copy, saved.dtype) for block, copy in _paired_blocks(place, saved))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"the base model's tensor {name!r} cannot be read to compare the adapter's copy with it"
        raise FailedPrecondition(message, reason="BASE_MODEL_UNREADABLE") from error


def _locate(folder: Path, name: str) -> _Place:
    file = folder / _shard_of(folder, name)
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError("header too large")
        entry: dict[str, Any] = json.loads(stream.read(header_bytes))[name]
    offset = 8 + header_bytes + int(entry["data_offsets"][0])
    return _Place(file, offset, str(entry["dtype"]), tuple(entry["shape"]))


def _shard_of(folder: Path, name: str) -> str:
    index = folder / _INDEX_FILE
    if not index.is_file():
        return _SINGLE_FILE
    with index.open("rb") as stream:
        shard = json.loads(stream.read(_MAX_INDEX_BYTES))["weight_map"][name]
    if Path(shard).name != shard:
        raise ValueError("a shard outside the base model's folder")
    return str(shard)


def _paired_blocks(place: _Place, saved: TensorBytes) -> Iterator[tuple[bytes, bytes]]:
    base_item, saved_item = ITEM_BYTES[place.dtype], ITEM_BYTES[saved.dtype]
    with place.file.open("rb") as stream:
        stream.seek(place.offset)
        for start in range(0, saved.num_elements, _BLOCK_ITEMS):
            num_items = min(_BLOCK_ITEMS, saved.num_elements - start)
            block = stream.read(num_items * base_item)
            if len(block) != num_items * base_item:
                raise ValueError("the base model's file ends early")
            yield block, saved.data[start * saved_item : (start + num_items) * saved_item]


def _same(block: bytes, dtype: str, copy: bytes, copy_dtype: str) -> bool:
    return block == copy if dtype == copy_dtype else _narrow(_widen(block, dtype), copy_dtype) == copy


def _widen(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (np.frombuffer(data, np.dtype("<u2")).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype("<f2") if dtype == "F16" else np.dtype("<f4")).astype(np.float32)


def _narrow(values: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.dtype("<f2")).tobytes()
    if dtype == "F32":
        return values.astype(np.dtype("<f4")).tobytes()
    bits = values.view(np.uint32).astype(np.uint64)  # wide enough that rounding up a NaN cannot wrap to zero
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return rounded.astype(np.dtype("<u2")).tobytes()
