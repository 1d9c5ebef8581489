"""The standing batch of a virtual worker: what its next step computes, and what comes of it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Final

from loraplex_scheduler.core.event import Emission
from loraplex_scheduler.simulation.cost_model import StepLoad
from loraplex_scheduler.simulation.virtual_sequence import VirtualSequence

TOKEN: Final = (0,)
"""Every output token of a simulation."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step that is being computed."""

    chunks: tuple[tuple[VirtualSequence, int], ...]
    """Prefill: sequence and rows."""
    num_decode_rows: int
    digests: frozenset[str]
    has_base_rows: bool
    load: StepLoad


class VirtualBatch:
    """As the worker's: a token for each running sequence, then prefill chunks in order of admission up to the budget.

    Args:
        adapter_bytes: of each adapter that is attached.
    """

    def __init__(self, adapter_bytes: Mapping[str, int]) -> None:
        self._adapter_bytes: Final = adapter_bytes
        self._all: dict[int, VirtualSequence] = {}
        self._decoding: dict[int, VirtualSequence] = {}
        self._prefilling: dict[int, VirtualSequence] = {}
        self._num_kv_tokens = self._num_rank_rows = self._num_lora_rows = 0
        """Of the decoding rows; kept up to date, since a step must not cost a walk for each of them."""
        self._digests: frozenset[str] | None = None
        """Of the decoding rows; None where they have changed."""

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._all

    def __iter__(self) -> Iterator[VirtualSequence]:
        return iter(self._all.values())

    def add(self, sequence: VirtualSequence) -> None:
        self._all[sequence.sequence_id] = sequence
        self._prefilling[sequence.sequence_id] = sequence

    def get(self, sequence_id: int) -> VirtualSequence | None:
        return self._all.get(sequence_id)

    def remove(self, sequence_id: int) -> VirtualSequence | None:
        sequence = self._all.pop(sequence_id, None)
        if sequence is not None:
            self._prefilling.pop(sequence_id, None)
            self._pause(sequence)
        return sequence

    def resume(self, sequence: VirtualSequence) -> None:
        """Its grant has grown."""
        if not sequence.num_pending and sequence.is_granted and sequence.sequence_id not in self._decoding:
            self._decode(sequence)

    def _decode(self, sequence: VirtualSequence) -> None:
        self._decoding[sequence.sequence_id] = sequence
        self._digests = None
        self._num_kv_tokens += sequence.num_computed + 1
        self._num_rank_rows += sequence.rank
        self._num_lora_rows += bool(sequence.digests)

    def _pause(self, sequence: VirtualSequence) -> None:
        if self._decoding.pop(sequence.sequence_id, None) is not None:
            self._digests = None
            self._num_kv_tokens -= sequence.num_computed + 1
            self._num_rank_rows -= sequence.rank
            self._num_lora_rows -= bool(sequence.digests)

    # --- one step ---

    def next_step(self, max_step_tokens: int) -> Step | None:
        """None where no sequence can go on."""
        chunks = tuple(self._chunks(max_step_tokens - len(self._decoding)))
        if not chunks and not self._decoding:
            return None
        digests = self._decoding_digests()
        if chunks:
            digests = digests.union(*(sequence.digests for sequence, _ in chunks))
        num_decode, num_prefill = len(self._decoding), sum(rows for _, rows in chunks)
        num_lora = self._num_lora_rows + sum(rows for sequence, rows in chunks if sequence.digests)
        load = StepLoad(
            num_decode_rows=num_decode,
            num_prefill_rows=num_prefill,
            num_lora_rows=num_lora,
            num_rank_rows=self._num_rank_rows + sum(sequence.rank * rows for sequence, rows in chunks),
            num_kv_tokens=self._num_kv_tokens + sum(sequence.num_computed + rows for sequence, rows in chunks),
            num_adapter_bytes=sum(self._adapter_bytes[digest] for digest in digests),
        )
        has_base_rows = num_lora < num_decode + num_prefill
        return Step(chunks, num_decode, digests, has_base_rows, load)

    def _decoding_digests(self) -> frozenset[str]:
        if self._digests is None:
            self._digests = frozenset(digest for s in self._decoding.values() for digest in s.digests)
        return self._digests

    def _chunks(self, num_rows_left: int) -> Iterator[tuple[VirtualSequence, int]]:
        for sequence in self._prefilling.values():
            if num_rows_left <= 0:
                return
            if sequence.is_granted:
                num_rows = min(sequence.num_pending, num_rows_left)
                num_rows_left -= num_rows
                yield sequence, num_rows

    def complete(self, step: Step) -> tuple[list[Emission], list[VirtualSequence]]:
        """The tokens of the step, whose time is over, and the sequences that it has ended.

        Nothing was added or removed since it began.
        """
        decoding = list(self._decoding.values())
        assert len(decoding) == step.num_decode_rows, "the batch changed during a step"
        emissions: list[Emission] = []
        ended: list[VirtualSequence] = []
        self._num_kv_tokens += len(decoding)
        for sequence in decoding:
            sequence.num_computed += 1
            emissions.append(self._emit(sequence, ended))
        for sequence, num_rows in step.chunks:
            sequence.num_pending -= num_rows
            sequence.num_computed += num_rows
            if not sequence.num_pending:
                del self._prefilling[sequence.sequence_id]
                self._decode(sequence)
                emissions.append(self._emit(sequence, ended))
        return emissions, ended

    def _emit(self, sequence: VirtualSequence, ended: list[VirtualSequence]) -> Emission:
        emission = Emission(sequence_id=sequence.sequence_id, first_index=sequence.num_output, token_ids=TOKEN)
        sequence.num_output += 1
        if sequence.num_output == sequence.max_tokens:
            self.remove(sequence.sequence_id)
            ended.append(sequence)
        elif sequence.num_output >= sequence.grant_tokens:
            self._pause(sequence)
        return emission
