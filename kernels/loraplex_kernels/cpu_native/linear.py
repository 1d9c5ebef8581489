"""A base linear over a packed weight, with the adapters of a batch on top."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_kernels.cpu_native import structures
from loraplex_kernels.cpu_native.adapter_groups import AdapterGroups, LoraStep, SegmentRows
from loraplex_kernels.cpu_native.library import Library
from loraplex_kernels.cpu_native.packed import DTYPES, check, check_host, pack
from loraplex_kernels.lora.segments import LoraBatch


class NativeLinear:
    """One to three weights that read one input, their outputs side by side."""

    def __init__(self, library: Library, weights: Sequence[Tensor], bias: Tensor | None) -> None:
        """Pack; the weights [out_features, in_features] may be dropped afterwards.

        Raises:
            ValueError: dtypes or shapes that do not fit.
        """
        first = weights[0]
        check(1 <= len(weights) <= structures.MAX_SITES, "a linear has one to three sites", first=first)
        for weight in weights:
            fits = weight.dtype == first.dtype and weight.shape[1:] == first.shape[1:]
            check(fits, "sites must have one dtype and input", first=first, weight=weight)
        self._library = library
        self.dtype, self.in_features = first.dtype, first.shape[1]
        self.out_features = sum(weight.shape[0] for weight in weights)
        self._packed = [pack(library, weight.contiguous()) for weight in weights]
        self._bias = None if bias is None else bias.to(torch.float32, copy=True).contiguous()
        self.struct = structures.Linear(in_features=self.in_features)
        for site, (weight, packed) in enumerate(zip(weights, self._packed, strict=True)):
            self.struct.weights[site] = packed.data_ptr()
            self.struct.out_features[site] = weight.shape[0]
        if self._bias is not None:
            check(self._bias.shape == (self.out_features,), "bias must be [out_features]", bias=self._bias)
            self.struct.bias = self._bias.data_ptr()

    def __call__(
        self,
        x: Tensor,
        *,
        norm: Tensor | None = None,
        norm_eps: float = 0.0,
        lora: LoraBatch | None = None,
        adapters: Sequence[AdapterGroups] = (),
        num_threads: int | None = None,
    ) -> Tensor:
        """``norm(x) W^T + bias + deltas``.

        Args:
            x: [T, in_features] float32; rounded to the weight's dtype where that is the faster way.
            norm: [in_features] float32 weight of a root-mean-square norm of x, or None.
            norm_eps: of the norm.
            lora: whose rows are whose, or None.
            adapters: by adapter index, each of one group: this linear.
            num_threads: torch's own number if None.

        Returns:
            [T, out_features] float32.

        Raises:
            ValueError: dtypes, shapes or strides that do not fit.
        """
        self._check(x, norm, lora, adapters)
        out = torch.empty(x.shape[0], self.out_features, dtype=torch.float32)
        if x.shape[0] == 0:
            return out
        step, number = LoraStep(SegmentRows(lora), adapters), DTYPES[self.dtype]
        linear, described = ctypes.byref(self.struct), ctypes.byref(step.struct)
        num_bytes = self._library.linear_scratch(linear, number, x.shape[0], described)
        scratch = torch.empty(num_bytes + 64, dtype=torch.uint8)
        self._library.linear(
            num_threads or torch.get_num_threads(),
            linear,
            number,
            x.shape[0],
            x.data_ptr(),
            None if norm is None else norm.data_ptr(),
            norm_eps,
            described,
            out.data_ptr(),
            -(-scratch.data_ptr() // 64) * 64,
        )
        return out

    def _check(self, x: Tensor, norm: Tensor | None, lora: LoraBatch | None, adapters: Sequence[AdapterGroups]) -> None:
        check_host(x=x)
        fits = x.dim() == 2 and x.dtype == torch.float32 and x.shape[1] == self.in_features
        check(fits, f"x must be float32 [T, {self.in_features}]", x=x)
        if norm is not None:
            check_host(norm=norm)
            fits = norm.dtype == torch.float32 and norm.shape == (self.in_features,)
            check(fits, f"norm must be float32 [{self.in_features}]", norm=norm)
        if lora is None:
            return
        if lora.num_rows != x.shape[0] or lora.max_adapter >= len(adapters):
            raise ValueError(
                f"the batch has {lora.num_rows} rows and names adapter {lora.max_adapter}; "
                f"x has {x.shape[0]} rows and there are {len(adapters)} adapters"
            )
        for adapter in adapters:
            if adapter.in_features not in ((None,), (self.in_features,)):
                raise ValueError(f"an adapter of inputs {adapter.in_features} does not fit {self.in_features}")
