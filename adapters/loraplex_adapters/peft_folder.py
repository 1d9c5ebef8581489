"""A folder that PEFT's ``save_pretrained`` wrote, read once and checked completely. Fail closed."""

import dataclasses
import hashlib
import os
from pathlib import Path

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import Module
from loraplex_adapters.peft_config import CONFIG_NAME, parse_peft_config
from loraplex_adapters.peft_targets import resolve_targets
from loraplex_adapters.peft_tensors import check_tensors
from loraplex_adapters.refusal import FORMAT, SOURCE_NOT_FOUND, malformed
from loraplex_adapters.refusals import Refusals
from loraplex_adapters.regular_file import read_small_file
from loraplex_adapters.safetensors_file import read_tensor_file
from loraplex_adapters.spec import LoraSite
from loraplex_adapters.tensor import TensorBytes

WEIGHTS_NAME = "adapter_model.safetensors"
_OTHER_FORMATS = (
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.pth",
    "adapter_model.pkl",
    "adapter_model.gguf",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAdapter:
    """A checked adapter that has no digest yet."""

    sites: tuple[LoraSite, ...]
    saved: tuple[Module, ...]
    tensors: dict[str, TensorBytes]
    """What ``AdapterSpec.tensor_names`` names; nothing else."""
    dtype: str
    base_model_name: str
    source_sha256: str
    """Of adapter_model.safetensors as it was read."""
    notes: tuple[str, ...]


def parse_peft_folder(folder: Path, base: BaseShape, limits: Limits) -> ParsedAdapter:
    """Read and check adapter_config.json and adapter_model.safetensors; other files are never opened.

    Links are not followed, each file is read once into memory, and everything is checked on that copy.

    What is wrong is told at once: the error's violations name every field, module and tensor that is refused, and why.

    Raises:
        InvalidArgument: missing (SOURCE_NOT_FOUND), not safetensors (ADAPTER_FORMAT), damaged or contradicting itself
            (ADAPTER_MALFORMED), NaN or infinity (ADAPTER_NONFINITE).
        FailedPrecondition: ADAPTER_FEATURE_UNSUPPORTED, ADAPTER_BASE_MISMATCH, ADAPTER_RANK_TOO_LARGE,
            ADAPTER_MODULE_UNSUPPORTED, ADAPTER_DTYPE_UNSUPPORTED, ADAPTER_NO_MODULES.
    """
    found = Refusals()
    dir_fd = _open_folder(folder)
    try:
        with found.ending(CONFIG_NAME):
            data = read_small_file(CONFIG_NAME, dir_fd=dir_fd, max_bytes=limits.max_config_bytes)
            config = parse_peft_config(data, limits, found)
            targets = resolve_targets(config, base, limits, found)
            _check_format(dir_fd)
            file = read_tensor_file(WEIGHTS_NAME, dir_fd=dir_fd, limits=limits)
    finally:
        os.close(dir_fd)
    checked = check_tensors(file.tensors, targets.sites, base, found, config.saved)
    return ParsedAdapter(
        sites=targets.sites,
        saved=config.saved,
        tensors=checked.tensors,
        dtype=next(iter(checked.tensors.values())).dtype,
        base_model_name=config.base_model_name,
        source_sha256=hashlib.sha256(file.data).hexdigest(),
        notes=targets.notes + checked.notes,
    )


def _open_folder(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise malformed("the adapter folder does not exist or is not a folder", reason=SOURCE_NOT_FOUND) from error


def _check_format(dir_fd: int) -> None:
    if _exists(WEIGHTS_NAME, dir_fd):
        return
    for name in _OTHER_FORMATS:
        if _exists(name, dir_fd):
            message = (
                f"the adapter's weights are in {name}; only safetensors is accepted. Save it again with PEFT >= 0.7"
            )
            raise malformed(message, reason=FORMAT, file=name)


def _exists(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
