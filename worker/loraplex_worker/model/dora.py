"""DoRA: the part of an adapter that depends on the base model's weights, worked out once when the adapter is loaded.

PEFT computes ``magnitude / ||W + scale B A|| * (W x + scale B A x) + bias``, the norm over the inputs of each output.
What is kept is ``gain = magnitude / norm - 1``, so that an adapter's change of a row is a sum, as of any other kind:
``gain * W x + (1 + gain) * scale B A x``. The norm is of the checkpoint's own weights, in float32.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from loraplex_adapters.module import ATTENTION_MODULES, Module
from loraplex_adapters.spec import LoraSite, site_key
from loraplex_contract.errors import FailedPrecondition
from loraplex_worker.model.checkpoint import Checkpoint

_BLOCK_ELEMENTS = 1 << 22


class BaseWeights:
    """The base model's weights in its folder, read one at a time."""

    def __init__(self, checkpoint: Checkpoint, *, is_tied: bool) -> None:
        self._checkpoint = checkpoint
        self._is_tied = is_tied

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path | None, *, is_tied: bool) -> "Iterator[BaseWeights]":
        """Open the checkpoint; ``is_tied``: the head shares the weight of the embedding.

        Raises:
            FailedPrecondition: the folder is not known, or as ``Checkpoint``.
            DataLoss: as ``Checkpoint``.
        """
        if folder is None:
            message = "use_dora needs the weights of the base model, and this model was made without its folder"
            raise FailedPrecondition(message, reason="ADAPTER_FEATURE_UNSUPPORTED", metadata={"field": "use_dora"})
        with Checkpoint.open(folder, torch.float32) as checkpoint:
            yield cls(checkpoint, is_tied=is_tied)

    def gain(self, site: LoraSite, a: Tensor, b: Tensor, magnitude: Tensor) -> Tensor:
        """``magnitude / ||W + scale B A|| - 1``: [out_features] float32.

        Args:
            site: which weight, and the scale.
            a: [rank, in_features] float32; for embed_tokens the input is the vocabulary.
            b: [out_features, rank] float32.
            magnitude: [out_features] float32.

        Raises:
            FailedPrecondition: a column of norm zero or beyond float32 (reason ADAPTER_NONFINITE).
        """
        gain = magnitude / _norms(self._weight(site, b.shape[0], a.shape[1]), a, b, site.scale) - 1
        if not bool(torch.isfinite(gain).all()):
            message = f"{site_key(site)}: the norm of W + scale B A is zero or not finite, so that DoRA is not defined"
            raise FailedPrecondition(message, reason="ADAPTER_NONFINITE")
        return gain

    def _weight(self, site: LoraSite, out_features: int, in_features: int) -> Tensor:
        """[out_features, in_features]."""
        if site.module is Module.EMBED_TOKENS:
            return self._checkpoint.read("model.embed_tokens.weight", (in_features, out_features)).t()
        if site.module is Module.LM_HEAD:
            name = "model.embed_tokens" if self._is_tied else "lm_head"
        else:
            block = "self_attn" if site.module in ATTENTION_MODULES else "mlp"
            name = f"model.layers.{site.layer}.{block}.{site.module.value}"
        return self._checkpoint.read(f"{name}.weight", (out_features, in_features))


def _norms(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Of the rows of ``weight + scale b a``, a block at a time: the sum is never held whole."""
    rows = max(1, _BLOCK_ELEMENTS // weight.shape[1])
    norms = torch.empty(weight.shape[0])
    for start in range(0, weight.shape[0], rows):
        block = torch.addmm(weight[start : start + rows], b[start : start + rows], a, alpha=scale)
        norms[start : start + rows] = torch.linalg.vector_norm(block, dim=1)
    return norms
