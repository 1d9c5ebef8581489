"""Named tensors of a Hugging Face folder, from one safetensors file or from shards."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraplex_contract.errors import DataLoss, FailedPrecondition

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Checkpoint:
    """Open files of one checkpoint; reads a tensor at a time and remembers which were read."""

    def __init__(self, files: dict[str, Any], dtype: torch.dtype) -> None:
        """``files`` maps each tensor name to the open safetensors file that has it."""
        self.dtype = dtype
        self._files = files
        self._unread = set(files)

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, dtype: torch.dtype) -> Iterator[Self]:
        """Open the checkpoint of a folder.

        Raises:
            FailedPrecondition: no checkpoint there, a shard is missing, or a shard lacks what the index says.
            DataLoss: a file that is not whole safetensors.
        """
        index = _read_index(folder)
        with contextlib.ExitStack() as stack:
            files: dict[str, Any] = {}
            for name in sorted(set(index.values())) if index is not None else [_SINGLE]:
                file = stack.enter_context(_open_file(folder / name))
                files.update(dict.fromkeys(file.keys(), file))
            if index is not None and set(index) != set(files):
                odd = sorted(set(index) ^ set(files))[:8]
                raise FailedPrecondition(f"{_INDEX} and the shards disagree about {odd}", reason="BASE_MODEL_MALFORMED")
            yield cls(files, dtype)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, cast to the compute dtype, in memory of its own.

        Raises:
            FailedPrecondition: not there, another shape, or not floating point.
        """
        file = self._files.get(name)
        if file is None:
            raise FailedPrecondition(f"the checkpoint lacks tensor {name}", reason="BASE_MODEL_MALFORMED")
        try:
            tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise DataLoss(f"tensor {name} cannot be read: {error}") from error
        if tuple(tensor.shape) != shape or tensor.dtype not in _FLOATS:
            raise FailedPrecondition(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)}; config.json needs a float of {list(shape)}",
                reason="BASE_MODEL_MALFORMED",
            )
        self._unread.discard(name)
        # The file may be a memory map: a tensor that needs no cast must be copied, or it would pin and fault from it.
        return tensor.to(self.dtype, copy=True).contiguous()

    def unread(self) -> set[str]:
        """Names that nobody has asked for yet."""
        return set(self._unread)


def _read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> shard file, or None where the checkpoint is one file."""
    if (folder / _SINGLE).is_file():
        return None
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    except FileNotFoundError as error:
        message = f"the base model folder has neither {_SINGLE} nor {_INDEX}"
        raise FailedPrecondition(message, reason="BASE_MODEL_MALFORMED") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(f"{_INDEX} is malformed", reason="BASE_MODEL_MALFORMED") from error
    if not isinstance(index, dict) or not all(_is_plain_name(shard) for shard in index.values()):
        raise FailedPrecondition(f"{_INDEX} names shards outside its folder", reason="BASE_MODEL_MALFORMED")
    return index


def _is_plain_name(shard: object) -> bool:
    return isinstance(shard, str) and shard.endswith(".safetensors") and Path(shard).name == shard


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise FailedPrecondition(f"shard {path.name} is missing", reason="BASE_MODEL_MALFORMED") from error
    except (SafetensorError, OSError) as error:
        raise DataLoss(f"{path.name} is not a whole safetensors file: {error}") from error
