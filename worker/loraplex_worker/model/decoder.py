"""The decoder: one definition for the Llama family, whatever the device."""

from typing import TYPE_CHECKING

from torch import Tensor

from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.step_batch import StepBatch

if TYPE_CHECKING:
    from loraplex_worker.model.model_config import ModelConfig
    from loraplex_worker.model.weights import ModelWeights


class Decoder:
    """A Llama-family decoder over paged KV, with LoRA of many adapters in one batch."""

    def __init__(self, config: "ModelConfig", weights: "ModelWeights") -> None:
        self.config = config
        self.weights = weights

    def forward(self, batch: StepBatch, kv: KvCache) -> Tensor:
        """Run one step: writes K and V of every row into ``kv``, then attends over each sequence's pages.

        Returns:
            [N, vocab_size] float32 logits of ``batch.logit_rows``, a tensor of its own (the caller may change it).
        """
        raise NotImplementedError

    def warm_up(self) -> None:
        """Run once on a throw-away cache, so that the first request does not pay for lazy set-up."""
        raise NotImplementedError
