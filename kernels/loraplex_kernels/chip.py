"""What a launcher must know of the chip that it launches on."""

import dataclasses
import functools

import torch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A device, as far as configs and grids depend on it."""

    capability: int
    """Compute capability times ten: 80, 90."""
    num_sms: int
    """Streaming multiprocessors."""
    is_serial: bool = False
    """Programs run one after the other, so that none may wait for another: Triton's interpreter."""


INTERPRETER = Chip(capability=90, num_sms=1, is_serial=True)
"""What tensors in host memory are computed on."""


@functools.cache
def _cuda_chip(index: int) -> Chip:
    properties = torch.cuda.get_device_properties(index)
    return Chip(capability=properties.major * 10 + properties.minor, num_sms=properties.multi_processor_count)


def chip_of(device: torch.device) -> Chip:
    """The chip behind ``device``."""
    if device.type != "cuda":
        return INTERPRETER
    return _cuda_chip(torch.cuda.current_device() if device == torch.device("cuda") else device.index)
