"""A model whose next token depends on everything that the engine must get right, and on nothing else.

Each row stores (token id, mark of its adapters) at its slot; the logits of a row are pseudo-random numbers keyed by
what the sequence's pages give back for every position so far. A wrong page, slot, position, adapter or weight shows
in the output, and a row's logits do not depend on the rest of the batch.
"""

import dataclasses
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.engine_config import EngineConfig
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.step_batch import StepBatch


@dataclasses.dataclass(frozen=True)
class FakeShape:
    vocab_size: int = 40
    max_position_embeddings: int = 4096


class FakeDecoder:
    def __init__(self, vocab_size: int = 40, *, poison: Collection[int] = ()) -> None:
        self.config = FakeShape(vocab_size=vocab_size)
        self.poison = frozenset(poison)
        """Rows of these token ids get NaN logits."""
        self.batches: list[StepBatch] = []

    def forward(self, batch: StepBatch, kv: KvCache) -> Tensor:
        self.batches.append(batch)
        self._check(batch)
        kv.open_pages(batch.slots)
        keys = torch.stack((batch.token_ids.double(), _marks(batch)), dim=1)
        values = torch.stack((batch.positions.double(), torch.zeros(len(batch.token_ids)).double()), dim=1)
        page, offset = batch.slots // kv.page_size, batch.slots % kv.page_size
        _entries(kv)[page, 0, offset], _entries(kv)[page, 1, offset] = keys, values
        logits = torch.empty(len(batch.logit_rows), self.config.vocab_size)
        for index, row in enumerate(batch.logit_rows.tolist()):
            logits[index] = self._logits(row, batch, kv)
        return logits

    def _logits(self, row: int, batch: StepBatch, kv: KvCache) -> Tensor:
        span = next(span for span in batch.spans if span.start_row <= row < span.start_row + span.num_rows)
        num_seen = span.context_len - span.num_rows + row - span.start_row + 1
        pages = _entries(kv)[list(span.page_ids)]
        context, positions = pages[:, 0].flatten(0, 1)[:num_seen], pages[:, 1].flatten(0, 1)[:num_seen, 0]
        assert positions.tolist() == list(range(num_seen)), "a page holds another place of the context"
        if batch.token_ids[row].item() in self.poison:
            return torch.full((self.config.vocab_size,), torch.nan)
        key = hash(tuple(context.flatten().tolist())) & 0xFFFFFFFF
        noise = np.random.default_rng(key).normal(size=self.config.vocab_size)
        return torch.from_numpy(noise * 2.0).float()

    def _check(self, batch: StepBatch) -> None:
        assert len(set(batch.slots.tolist())) == len(batch.slots), "two rows write one slot"
        row = 0
        for span in batch.spans:
            assert span.start_row == row
            row += span.num_rows
            positions = batch.positions[span.start_row : row].tolist()
            assert positions == list(range(span.context_len - span.num_rows, span.context_len))
        assert row == len(batch.token_ids) == len(batch.positions) == len(batch.slots)
        lengths = [span.num_rows != 1 for span in batch.spans]
        assert lengths == sorted(lengths), "decode spans come first"


def _entries(kv: KvCache) -> Tensor:
    """[num_pages, 2, page_size, 2]: with one layer and one head the order of the other dimensions does not matter."""
    return kv.storage.view(kv.num_pages, 2, kv.page_size, 2)


def _marks(batch: StepBatch) -> Tensor:
    marks = torch.zeros(len(batch.token_ids), dtype=torch.float64)
    if batch.lora is None:
        return marks
    for segment in batch.lora.segments:
        rows = segment.index if segment.index is not None else torch.arange(segment.start, segment.stop)
        weights = segment.row_weights.squeeze(1).double() if segment.row_weights is not None else segment.weight
        marks[rows] += batch.adapters[segment.adapter].num_bytes * weights
    return marks


def fake_weights(fingerprint: int) -> LoraWeights:
    """Weights that ``FakeDecoder`` tells apart by ``fingerprint``."""
    return LoraWeights(layers=(), embed_tokens=None, lm_head=None, num_bytes=fingerprint)


def small_engine(model: FakeDecoder | None = None, **changes: int) -> Engine:
    """Its pages are poisoned whenever they are given to somebody."""
    has_prefix_cache = bool(changes.pop("has_prefix_cache", True))
    settings = {"num_pages": 64, "page_size": 4, "max_context_tokens": 64, "max_step_tokens": 16} | changes
    config = EngineConfig(**settings, has_prefix_cache=has_prefix_cache)
    kv = KvCache(
        num_layers=1,
        num_pages=config.num_pages,
        page_size=config.page_size,
        num_kv_heads=1,
        head_dim=2,
        dtype=torch.float64,
    )
    engine = Engine(model or FakeDecoder(), kv, config)
    poison_taken_pages(engine)
    return engine


def poison_taken_pages(engine: Engine) -> None:
    """From now on whoever gets a page to write to finds NaN in it: what somebody else still reads shows."""
    pool, storage = engine._pool, engine._kv.storage
    take_one = pool._take_one

    def take_poisoned() -> int:
        page = take_one()
        storage[page] = torch.nan
        return page

    pool._take_one = take_poisoned  # type: ignore[method-assign]
