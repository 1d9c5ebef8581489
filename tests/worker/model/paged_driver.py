"""Drives a Decoder the way an engine would: keeps sequences, pages and slots; pages are handed out scrambled."""

import dataclasses
import math
import random
from typing import Any

import torch
from torch import Tensor

from loraplex_kernels.lora.segments import AdapterPairs, LoraBatch
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.step_batch import Span, StepBatch


@dataclasses.dataclass(slots=True)
class Sequence:
    """One sequence: its tokens so far, how many are in the cache, and its pages."""

    tokens: list[int]
    pairs: AdapterPairs = ()
    done: int = 0
    pages: list[int] = dataclasses.field(default_factory=list)


class PagedDriver:
    """A pool of scrambled pages, all poisoned with NaN, over one decoder."""

    def __init__(
        self, decoder: Decoder, *, page_size: int = 4, num_pages: int = 64, adapters: tuple[LoraWeights, ...] = ()
    ) -> None:
        config = decoder.config
        self.decoder = decoder
        self.adapters = adapters
        self.kv = KvCache(
            num_layers=config.num_layers,
            num_pages=num_pages,
            page_size=page_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=decoder.dtype,
        )
        self.kv.storage.fill_(math.nan)
        self._free = list(range(num_pages))
        random.Random(7).shuffle(self._free)

    def step(self, work: list[tuple[Sequence, int]]) -> list[Tensor]:
        """Run the next ``count`` tokens of each sequence in one batch; logits [count, vocab] of each.

        Sequences with one row go first, as the decoder asks; results come back in the order given.
        """
        order = sorted(range(len(work)), key=lambda index: work[index][1] > 1)
        spans: list[Any] = []
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        runs: list[Any] = []
        for index in order:
            sequence, count = work[index]
            end = sequence.done + count
            while len(sequence.pages) * self.kv.page_size < end:
                sequence.pages.append(self._free.pop())
            spans.append(
                Span(start_row=len(token_ids), num_rows=count, context_len=end, page_ids=tuple(sequence.pages))
            )
            for position in range(sequence.done, end):
                page, offset = divmod(position, self.kv.page_size)
                slots.append(sequence.pages[page] * self.kv.page_size + offset)
                positions.append(position)
            token_ids.extend(sequence.tokens[sequence.done : end])
            runs.append((count, sequence.pairs))
            sequence.done = end
        lora = LoraBatch.from_runs(runs)
        batch = StepBatch(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            spans=tuple(spans),
            logit_rows=torch.arange(len(token_ids)),
            lora=lora,
            adapters=self.adapters if lora is not None else (),
        )
        logits = self.decoder.forward(batch, self.kv)
        rows = dict(zip(order, logits.split([span.num_rows for span in spans]), strict=True))
        return [rows[index] for index in range(len(work))]

    def run(self, sequences: list[Sequence], chunks: list[int]) -> list[Tensor]:
        """All logits of all sequences, [len(tokens), vocab] each.

        Every step takes the next chunk length for each sequence (shifted by its number, so that lengths mix), and the
        last chunk length repeats until all is done.
        """
        parts: list[list[Tensor]] = [[] for _ in sequences]
        turn = 0
        while any(sequence.done < len(sequence.tokens) for sequence in sequences):
            work, who = [], []
            for number, sequence in enumerate(sequences):
                left = len(sequence.tokens) - sequence.done
                chunk = chunks[min(turn + number % 2, len(chunks) - 1)]
                if left:
                    work.append((sequence, min(chunk, left)))
                    who.append(number)
            for number, logits in zip(who, self.step(work), strict=True):
                parts[number].append(logits)
            turn += 1
        return [torch.cat(part) for part in parts]

    def release(self, sequence: Sequence) -> None:
        """Give the pages back, poisoned, as a sequence that went to NaN would."""
        for page in sequence.pages:
            self.kv.storage[page] = math.nan
        self._free.extend(sequence.pages)
        sequence.pages, sequence.done = [], 0
