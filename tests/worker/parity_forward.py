"""One prefill of many whole sequences in one mixed batch, straight through the decoder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loraplex_kernels.lora.segments import LoraBatch
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.step_batch import Span, StepBatch
from tests.worker.parity_adapters import Row

PAGE_SIZE = 16


def last_logits(decoder: Decoder, stored: Mapping, rows: Sequence[Row], sequences: Sequence[Sequence[int]]) -> Tensor:
    """[len(rows), vocab] float32: the logits after the last token of each sequence."""
    names = list(stored)
    weights = tuple(
        LoraWeights.from_tensors(*stored[name], dtype=decoder.lora_dtype, config=decoder.config) for name in names
    )
    spans, slots, num_pages = _lay_out(sequences)
    runs = [
        (span.num_rows, tuple((names.index(name), weight) for name, weight in row.adapters))
        for span, row in zip(spans, rows, strict=True)
    ]
    batch = StepBatch(
        token_ids=torch.tensor([token for sequence in sequences for token in sequence]),
        positions=torch.tensor([position for sequence in sequences for position in range(len(sequence))]),
        slots=torch.tensor(slots),
        spans=tuple(spans),
        logit_rows=torch.tensor([span.start_row + span.num_rows - 1 for span in spans]),
        lora=LoraBatch.from_runs(runs),
        adapters=weights,
    )
    shape = decoder.config
    kv = KvCache(
        num_layers=shape.num_layers,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=decoder.dtype,
    )
    return decoder.forward(batch, kv)


def _lay_out(sequences: Sequence[Sequence[int]]) -> tuple[list[Span], list[int], int]:
    spans, slots, start, next_page = [], [], 0, 0
    for sequence in sequences:
        length = len(sequence)
        pages = tuple(range(next_page, next_page + -(-length // PAGE_SIZE)))
        next_page += len(pages)
        spans.append(Span(start_row=start, num_rows=length, context_len=length, page_ids=pages))
        slots += [pages[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE for i in range(length)]
        start += length
    return spans, slots, next_page
