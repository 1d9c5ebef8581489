"""The base model that a worker serves: what it is called on the wire, and how it gets into memory."""

import hashlib
from pathlib import Path
from typing import Final

import torch

from loraplex_contract.errors import FailedPrecondition
from loraplex_kernels.cpu_native.library import Mode, NativeUnavailable
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.weights import load_weights

DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}


def model_fingerprint(folder: Path) -> str:
    """SHA-256 of the bytes of ``config.json`` in hex, by which frontends and workers know that they mean one model.

    Raises:
        FailedPrecondition: no such file.
    """
    try:
        content = (folder / "config.json").read_bytes()
    except OSError as error:
        message = f"model: config.json in the folder cannot be read ({type(error).__name__})"
        raise FailedPrecondition(message, reason="BASE_MODEL_UNSUPPORTED") from error
    return hashlib.sha256(content).hexdigest()


def load_decoder(folder: Path, dtype: torch.dtype, cpu_kernels: Mode = "auto") -> Decoder:
    """Read config and weights and run once, so that the first request pays for nothing. Takes seconds: not on a loop.

    Raises:
        FailedPrecondition: an architecture, field or tensor that is not understood, or native kernels that were asked
            for and cannot be had.
        DataLoss: a weights file is damaged.
    """
    config = ModelConfig.from_folder(folder)
    try:
        decoder = Decoder(config, load_weights(folder, config, dtype), cpu_kernels=cpu_kernels)
    except NativeUnavailable as error:
        message = f"cpu_kernels: native, but {error}; install a C++ compiler or choose auto"
        raise FailedPrecondition(message, reason="CPU_KERNELS_UNAVAILABLE") from error
    decoder.warm_up()
    return decoder
