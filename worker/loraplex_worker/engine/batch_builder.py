"""From the standing batch to the rows of one step."""

import dataclasses
from collections.abc import Iterator

import torch

from loraplex_kernels.lora.segments import LoraBatch
from loraplex_worker.engine.attached_adapters import AttachedAdapters
from loraplex_worker.engine.command import AdapterWeight
from loraplex_worker.engine.prefix_cache import PrefixCache
from loraplex_worker.engine.prefix_leaders import PrefixLeaders
from loraplex_worker.engine.report import PrefixHit
from loraplex_worker.engine.sequence import Sequence
from loraplex_worker.engine.standing_batch import StandingBatch
from loraplex_worker.model.lora_weights import LoraWeights
from loraplex_worker.model.step_batch import Span, StepBatch

_PREFILL_PART = 8
"""Prefill gets at least one row in so many of a step's budget, however many sequences decode."""
Runs = tuple[tuple[int, tuple[AdapterWeight, ...]], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """What one sequence computes in a step."""

    sequence: Sequence
    num_rows: int

    @property
    def is_last(self) -> bool:
        """Whether it leaves no token pending, so that its last row gives a new one."""
        return self.num_rows == self.sequence.num_pending

    @property
    def num_prompt_logits(self) -> int:
        """Leading rows whose logits judge the next token of the prompt: all but the row of the prompt's last token."""
        if self.sequence.prompt_logprobs is None:
            return 0
        return max(0, min(self.num_rows, self.sequence.num_prompt - 1 - self.sequence.num_computed))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One step: what the model computes and to whom the logits belong.

    The logits come in this order: one row for each of ``sampled``, then ``num_prompt_logits`` rows for each of
    ``judged``.
    """

    batch: StepBatch
    decoding: tuple[Sequence, ...]
    prefilling: tuple[Share, ...]
    sampled: tuple[Sequence, ...]
    judged: tuple[Share, ...]
    adapter_digests: frozenset[str]
    has_base_rows: bool
    num_rows: int
    prefix_hits: tuple[PrefixHit, ...]


class BatchBuilder:
    """Builds plans. Keeps the LoRA descriptor of the last step, since a batch that only decodes does not change."""

    def __init__(self, *, page_size: int, max_prompt_logprob_rows: int, device: torch.device) -> None:
        self._page_size = page_size
        self._max_prompt_logprob_rows = max_prompt_logprob_rows
        self._device = device
        self._lora_runs: Runs = ()
        self._lora: tuple[LoraBatch | None, tuple[LoraWeights, ...], frozenset[str]] = (None, (), frozenset())

    def forget_adapters(self) -> None:
        """To be called when an attached adapter changes: a digest may come back with other weights."""
        self._lora_runs, self._lora = (), (None, (), frozenset())

    def build(
        self, standing: StandingBatch, adapters: AttachedAdapters, prefixes: PrefixCache, max_step_tokens: int
    ) -> Plan | None:
        """One row for each decoding sequence, then prefill in order of admission up to ``max_step_tokens`` rows.

        A sequence that has not begun starts behind what ``prefixes`` has of it.

        Returns:
            None where no sequence can go on.
        """
        decoding = tuple(
            sequence for sequence in standing.in_layout_order() if sequence.is_prefilled and sequence.is_granted
        )
        num_rows_left = max(max_step_tokens - len(decoding), max_step_tokens // _PREFILL_PART, 1)
        prefilling = tuple(self._prefill(standing, prefixes, num_rows_left))
        if not decoding and not prefilling:
            return None
        # A chunk of one row is laid beside the decode rows, which it equals in shape.
        prefilling = tuple(sorted(prefilling, key=lambda share: (share.num_rows != 1, share.sequence.adapter_key)))
        return self._plan(decoding, prefilling, adapters)

    def _prefill(self, standing: StandingBatch, prefixes: PrefixCache, num_rows_left: int) -> Iterator[Share]:
        num_judged_left = self._max_prompt_logprob_rows
        leaders = PrefixLeaders(self._page_size)
        for sequence in standing.in_admission_order():
            if num_rows_left <= 0:
                return
            if sequence.is_prefilled or not sequence.is_granted:
                continue
            if not sequence.is_started:
                prefixes.catch_up(sequence)
                if leaders.is_ahead_of(sequence):
                    continue
            limit = num_rows_left if sequence.prompt_logprobs is None else min(num_rows_left, num_judged_left)
            share = Share(sequence, min(sequence.num_pending, limit))
            if share.num_rows:
                num_rows_left -= share.num_rows
                num_judged_left -= share.num_prompt_logits
                leaders.add(sequence)
                yield share

    def _plan(self, decoding: tuple[Sequence, ...], prefilling: tuple[Share, ...], adapters: AttachedAdapters) -> Plan:
        rows = _Rows(self._page_size)
        for sequence in decoding:
            rows.add_one(sequence)
        starts = [rows.add_chunk(share) for share in prefilling]
        last = [(start, share) for start, share in zip(starts, prefilling, strict=True) if share.is_last]
        judged = [(start, share) for start, share in zip(starts, prefilling, strict=True) if share.num_prompt_logits]
        logit_rows = [*range(len(decoding)), *(start + share.num_rows - 1 for start, share in last)]
        for start, share in judged:
            logit_rows.extend(range(start, start + share.num_prompt_logits))
        runs = (
            *((1, sequence.adapters) for sequence in decoding),
            *((share.num_rows, share.sequence.adapters) for share in prefilling),
        )
        lora, weights, digests = self._describe_lora(runs, adapters)
        return Plan(
            batch=rows.to_batch(logit_rows, lora, weights, self._device),
            decoding=decoding,
            prefilling=prefilling,
            sampled=decoding + tuple(share.sequence for _, share in last),
            judged=tuple(share for _, share in judged),
            adapter_digests=digests,
            has_base_rows=any(not used for _, used in runs),
            num_rows=len(rows.token_ids),
            prefix_hits=tuple(_hits(prefilling)),
        )

    def _describe_lora(
        self, runs: Runs, adapters: AttachedAdapters
    ) -> tuple[LoraBatch | None, tuple[LoraWeights, ...], frozenset[str]]:
        if runs != self._lora_runs:
            index: dict[str, int] = {}
            for _, pairs in runs:
                for adapter in pairs:
                    index.setdefault(adapter.digest, len(index))
            indexed = (
                (num_rows, tuple((index[adapter.digest], adapter.weight) for adapter in pairs))
                for num_rows, pairs in runs
            )
            lora = LoraBatch.from_runs(indexed, device=self._device)
            self._lora = (lora, tuple(adapters[digest] for digest in index), frozenset(index))
            self._lora_runs = runs
        return self._lora


def _hits(prefilling: tuple[Share, ...]) -> Iterator[PrefixHit]:
    for share in prefilling:
        sequence = share.sequence
        if sequence.num_reused and not sequence.is_started:
            yield PrefixHit(sequence_id=sequence.sequence_id, num_tokens=sequence.num_reused)


class _Rows:
    """Rows of a step, gathered in Python lists: one tensor at the end costs less than one for each sequence."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self.token_ids: list[int] = []
        self._positions: list[int] = []
        self._slots: list[int] = []
        self._spans: list[Span] = []

    def add_one(self, sequence: Sequence) -> None:
        """The single pending token of a decoding sequence."""
        position = sequence.num_computed
        page, offset = divmod(position, self._page_size)
        page_ids = sequence.page_ids
        self._spans.append(Span(start_row=len(self.token_ids), num_rows=1, context_len=position + 1, page_ids=page_ids))
        self.token_ids.append(sequence.tokens[position])
        self._positions.append(position)
        self._slots.append(page_ids[page] * self._page_size + offset)

    def add_chunk(self, share: Share) -> int:
        """The next ``num_rows`` pending tokens; returns the row of the first."""
        sequence, start_row, size = share.sequence, len(self.token_ids), self._page_size
        first, end = sequence.num_computed, sequence.num_computed + share.num_rows
        self._spans.append(
            Span(start_row=start_row, num_rows=share.num_rows, context_len=end, page_ids=sequence.page_ids)
        )
        self.token_ids.extend(sequence.tokens[first:end])
        self._positions.extend(range(first, end))
        for page in range(first // size, -(-end // size)):
            base = sequence.page_ids[page] * size - page * size
            self._slots.extend(range(base + max(first, page * size), base + min(end, (page + 1) * size)))
        return start_row

    def to_batch(
        self, logit_rows: list[int], lora: LoraBatch | None, weights: tuple[LoraWeights, ...], device: torch.device
    ) -> StepBatch:
        return StepBatch(
            token_ids=torch.tensor(self.token_ids, dtype=torch.int64, device=device),
            positions=torch.tensor(self._positions, dtype=torch.int64, device=device),
            slots=torch.tensor(self._slots, dtype=torch.int64, device=device),
            spans=tuple(self._spans),
            logit_rows=torch.tensor(logit_rows, dtype=torch.int64, device=device),
            lora=lora,
            adapters=weights if lora is not None else (),
        )
