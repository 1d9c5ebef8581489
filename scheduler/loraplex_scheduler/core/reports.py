"""Takes what workers report: tokens go on exactly once and in order, what does not fit the books fences the worker."""

from collections.abc import Callable
from typing import Final

from loraplex_contract.errors import Internal
from loraplex_scheduler.core.command import Command, PromptLogprobsReady, Tokens
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.endings import Endings
from loraplex_scheduler.core.estimator import Estimator
from loraplex_scheduler.core.event import (
    Emission,
    PrefixHit,
    PromptLogprobs,
    SequenceFinish,
    StepReported,
    WorkerFinish,
)
from loraplex_scheduler.core.fair_share import FairShare
from loraplex_scheduler.core.finish import FinishReason
from loraplex_scheduler.core.request import Sequence
from loraplex_scheduler.core.standing import Standing
from loraplex_scheduler.core.worker import Worker

_REASONS: Final = {
    WorkerFinish.STOP_TOKEN: FinishReason.STOP_TOKEN,
    WorkerFinish.MAX_TOKENS: FinishReason.MAX_TOKENS,
    WorkerFinish.CONTEXT_LIMIT: FinishReason.CONTEXT_LIMIT,
}


class WorkerFault(Exception):
    """A report that cannot be true."""


class Reports:
    """Applies step reports of connected workers."""

    def __init__(
        self,
        config: CoreConfig,
        *,
        standing: Standing,
        endings: Endings,
        estimator: Estimator,
        fair_share: FairShare,
        emit: Callable[[Command], None],
    ) -> None:
        self._decode_cost: Final = config.decode_cost
        self._estimator: Final = estimator
        self._fair_share: Final = fair_share
        self._standing: Final = standing
        self._endings: Final = endings
        self._emit: Final = emit

    def take(self, worker: Worker, report: StepReported, *, now_ns: int) -> bool:
        """Entries of sequences that are not (or no longer) on the worker are dropped.

        Returns:
            Whether something is free, can be given prompts again, or starves for room: the batches need another look.

        Raises:
            WorkerFault: what came before it in the report has been applied.
        """
        was_prefill_bound = worker.is_prefill_bound
        worker.count_step(report)
        for hit in report.prefix_hits:
            self._take_prefix_hit(worker, hit)
        for entry in report.prompt_logprobs:
            self._take_prompt_logprobs(worker, entry)
        touched = []
        for emission in report.emissions:
            sequence = worker.sequences.get(emission.sequence_id)
            if sequence is not None:
                self._take_tokens(worker, sequence, emission, now_ns=now_ns)
                touched.append(sequence)
        for finish in report.finishes:
            sequence = worker.sequences.get(finish.sequence_id)
            if sequence is not None:
                self._take_finish(sequence, finish, now_ns=now_ns)
        self._extend(worker, touched)
        is_open_again = was_prefill_bound and not worker.is_prefill_bound
        return bool(report.finishes or worker.starving or is_open_again)

    def _extend(self, worker: Worker, touched: list[Sequence]) -> None:
        for sequence in touched:
            is_here = sequence.sequence_id in worker.sequences
            if is_here and sequence.sequence_id not in worker.starving and self._standing.needs_grant(sequence):
                self._standing.extend(sequence)

    def _take_tokens(self, worker: Worker, sequence: Sequence, emission: Emission, *, now_ns: int) -> None:
        overlap = sequence.num_output - emission.first_index
        if overlap < 0:
            raise WorkerFault(f"tokens from {emission.first_index} on, {sequence.num_output} was next")
        token_ids = emission.token_ids[overlap:]
        if not token_ids:
            return
        if sequence.num_output + len(token_ids) > sequence.grant_tokens:
            raise WorkerFault(f"more tokens than the grant of {sequence.grant_tokens}")
        worker.backlog.settle(sequence.sequence_id)
        self._note_progress(sequence, len(token_ids), now_ns=now_ns)
        first_index = sequence.num_output
        sequence.emitted.extend(token_ids)
        worker.counters.num_output_tokens += len(token_ids)
        self._emit(
            Tokens(
                key=sequence.request.key,
                index=sequence.index,
                first_index=first_index,
                token_ids=token_ids,
                logprobs=None if emission.logprobs is None else emission.logprobs[overlap:],
            )
        )

    def _note_progress(self, sequence: Sequence, num_tokens: int, *, now_ns: int) -> None:
        if sequence.first_token_ns is None:
            sequence.first_token_ns = now_ns
            self._estimator.prefilled(len(sequence.request.prompt_ids), now_ns - sequence.started_ns)
        sequence.is_fresh = False
        sequence.request.num_worker_losses = 0
        sequence.request.account.charge(self._decode_cost * num_tokens)
        self._fair_share.earn(num_tokens)

    def _take_finish(self, sequence: Sequence, finish: SequenceFinish, *, now_ns: int) -> None:
        if finish.reason is WorkerFinish.NUMERICAL:
            message = "the model's output for this request was not finite: check the adapter and its weight"
            error = Internal(message, reason="NUMERICAL")
            self._endings.finish(sequence, FinishReason.ERROR, now_ns=now_ns, error=error, is_worker_done=True)
            return
        reason = _REASONS[finish.reason]
        if reason is FinishReason.MAX_TOKENS:
            if sequence.num_output != sequence.max_tokens:
                raise WorkerFault(f"ended at max_tokens={sequence.max_tokens} after {sequence.num_output} tokens")
            reason = reason_of_max_tokens(sequence)
        self._endings.finish(sequence, reason, now_ns=now_ns, stop_token_id=finish.stop_token_id, is_worker_done=True)

    def _take_prefix_hit(self, worker: Worker, hit: PrefixHit) -> None:
        sequence = worker.sequences.get(hit.sequence_id)
        if sequence is None:
            return
        # The last token is always computed, and none has been emitted by this admission yet.
        if not 0 < hit.num_tokens < len(sequence.request.prompt_ids) + sequence.num_output:
            raise WorkerFault(f"a prefix of {hit.num_tokens} tokens was found, the sequence has no more than that")
        is_first = not sequence.num_recomputed
        sequence.take_prefix_hit(hit.num_tokens)
        if is_first:
            self._standing.refund_prefix(sequence, hit.num_tokens)

    def _take_prompt_logprobs(self, worker: Worker, entry: PromptLogprobs) -> None:
        sequence = worker.sequences.get(entry.sequence_id)
        if sequence is not None and not sequence.request.has_prompt_logprobs:
            sequence.request.has_prompt_logprobs = True
            self._emit(PromptLogprobsReady(key=sequence.request.key, entries=entry.entries))


def reason_of_max_tokens(sequence: Sequence) -> FinishReason:
    """An open-ended request has no maximum of its own: it filled its context."""
    return FinishReason.CONTEXT_LIMIT if sequence.request.is_open_ended else FinishReason.MAX_TOKENS
