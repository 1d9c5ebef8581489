"""safetensors under our own limits: the library parses, but only what has passed our bounds.

The library refuses overlaps, holes, trailing bytes, overflow and duplicate names. It takes without complaint a million
empty tensors, a 90 MB header and a file that changes under a memory map; those are refused here, before it sees a byte.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import safetensors

from loraplex_adapters.limits import Limits
from loraplex_adapters.refusal import DTYPE_UNSUPPORTED, FORMAT, malformed, quote, unfit
from loraplex_adapters.refusals import Refusals
from loraplex_adapters.regular_file import file_size, open_regular, read_exactly
from loraplex_adapters.tensor import ITEM_BYTES, TensorBytes

_LENGTH_BYTES = 8
_MAX_DIMS = 2
_FOREIGN_MAGIC = {b"PK\x03\x04": "a zip archive (torch.save)", b"GGUF": "a GGUF file", b"\x80": "a pickle"}


class TensorFile(NamedTuple):
    """The content of one safetensors file."""

    tensors: dict[str, TensorBytes]
    """In file order."""
    data: bytes
    """The file itself, for hashing."""


def read_tensor_file(name: str, *, dir_fd: int, limits: Limits) -> TensorFile:
    """Read and check one file of F32, F16 or BF16 matrices.

    Raises:
        InvalidArgument: missing (SOURCE_NOT_FOUND), another format (ADAPTER_FORMAT), damaged or over a limit
            (ADAPTER_MALFORMED).
        FailedPrecondition: a tensor of another dtype (ADAPTER_DTYPE_UNSUPPORTED).
    """
    fd = open_regular(name, dir_fd=dir_fd)
    try:
        num_bytes = file_size(fd, name, max_bytes=limits.max_file_bytes)
        head = read_exactly(fd, min(_LENGTH_BYTES, num_bytes), name=name)
        _check_header_length(head, num_bytes, name=name, limits=limits)
        data = head + read_exactly(fd, num_bytes - len(head), name=name)
    finally:
        os.close(fd)
    return TensorFile(tensors=_parse(data, name=name, limits=limits), data=data)


def encode_header(tensors: Mapping[str, TensorBytes]) -> bytes:
    """Length and header of a safetensors file whose payload is the data of ``tensors`` in the mapping's order."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header


def _check_header_length(head: bytes, num_bytes: int, *, name: str, limits: Limits) -> None:
    header_bytes = int.from_bytes(head, "little")
    if len(head) == _LENGTH_BYTES and header_bytes <= min(limits.max_header_bytes, num_bytes - _LENGTH_BYTES):
        return
    for magic, what in _FOREIGN_MAGIC.items():
        if head.startswith(magic):
            raise malformed(f"{name} is {what}; only safetensors is accepted", reason=FORMAT, file=name)
    if len(head) < _LENGTH_BYTES:
        raise malformed(f"{name} has {num_bytes} bytes, too few for a safetensors header", file=name)
    limit = f"at most {limits.max_header_bytes} are accepted"
    raise malformed(f"{name} claims a header of {header_bytes} bytes in a file of {num_bytes}; {limit}", file=name)


def _parse(data: bytes, *, name: str, limits: Limits) -> dict[str, TensorBytes]:
    try:
        entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise malformed(f"{name} is not a valid safetensors file: {quote(str(error))}", file=name) from error
    if len(entries) > limits.max_tensors:
        message = f"{name} holds {len(entries)} tensors; at most {limits.max_tensors} are accepted"
        raise malformed(message, file=name)
    tensors: dict[str, TensorBytes] = {}
    found = Refusals()
    while entries:
        tensor_name, entry = entries.pop()  # popped, so that each copy replaces the library's own
        tensor = _checked_tensor(tensor_name, entry, found)
        if tensor is not None:
            tensors[tensor_name] = tensor
    found.raise_if_any()
    return dict(reversed(tensors.items()))


def _checked_tensor(name: str, entry: Any, found: Refusals) -> TensorBytes | None:
    dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
    if dtype not in ITEM_BYTES:
        problem = f"has dtype {dtype}; supported: {', '.join(ITEM_BYTES)}. Convert it before registering"
        error = unfit(f"tensor {quote(name)} {problem}", reason=DTYPE_UNSUPPORTED, tensor=quote(name))
        found.add(name, problem, error)
        return None
    if not 1 <= len(shape) <= _MAX_DIMS:
        problem = f"has {len(shape)} dimensions; LoRA weights have 2, and biases 1"
        found.add(name, problem, malformed(f"tensor {quote(name)} {problem}", tensor=quote(name)))
        return None
    return TensorBytes(dtype, shape, bytes(entry["data"]))
