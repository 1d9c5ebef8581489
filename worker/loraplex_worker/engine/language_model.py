"""What the engine asks of a model: ``loraplex_worker.model.decoder.Decoder`` is one."""

from typing import Protocol

from torch import Tensor

from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.step_batch import StepBatch


class ModelShape(Protocol):
    """The figures of a model's config that bound a request."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_position_embeddings(self) -> int: ...


class LanguageModel(Protocol):
    """One forward pass over paged KV."""

    @property
    def config(self) -> ModelShape: ...

    def forward(self, batch: StepBatch, kv: KvCache) -> Tensor:
        """[N, vocab_size] float32 logits of ``batch.logit_rows``."""
        ...
