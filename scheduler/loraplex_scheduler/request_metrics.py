"""Follows requests through the turns of the core, and counts what became of them."""

import collections
import dataclasses
from collections.abc import Iterable, Set
from typing import Final

from loraplex_contract.metrics import MetricTable
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.finish import FinishReason, Timing

VLLM_REASONS: Final = {
    FinishReason.STOP_STRING: "stop",
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.MAX_TOKENS: "length",
    FinishReason.CONTEXT_LIMIT: "length",
    FinishReason.TIME_LIMIT: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}
_NS_PER_S: Final = 1e9


@dataclasses.dataclass(slots=True, kw_only=True)
class _Open:
    """An accepted request that has not ended."""

    submitted: events.Submitted
    accepted_ns: int
    num_unfinished: int
    names: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    last_token_ns: dict[int, int] = dataclasses.field(default_factory=dict)
    """Of each sequence that has one."""


class RequestMetrics:
    """Knows the open requests by what went into the core and what came out of it."""

    def __init__(self, vllm: MetricTable, own: MetricTable) -> None:
        self._vllm = vllm
        self._own = own
        self._open: dict[events.RequestKey, _Open] = {}
        self._submitted: dict[events.RequestKey, events.Submitted] = {}
        """Of the present turn."""
        self._incarnations: dict[str, str] = {}
        self._digest_sets: collections.Counter[tuple[str, ...]] = collections.Counter()
        """Of the open requests that have adapters."""
        self._ttft = vllm.histogram("vllm:time_to_first_token_seconds").series()
        self._itl = vllm.histogram("vllm:inter_token_latency_seconds").series()
        self._num_output_tokens = vllm.number("vllm:generation_tokens_total")
        self._num_prompt_tokens = vllm.number("vllm:prompt_tokens_total")

    @property
    def num_open(self) -> int:
        return len(self._open)

    def digest_sets(self) -> Iterable[tuple[tuple[str, ...], int]]:
        """What open requests need on one device, and how many need it."""
        return self._digest_sets.items()

    def names_by_use(self, running: Set[str]) -> tuple[set[str], set[str]]:
        """Names with a request whose versions are all among ``running``, and those of the other open requests."""
        busy: set[str] = set()
        waiting: set[str] = set()
        for request in self._open.values():
            (busy if running >= set(request.digests) else waiting).update(request.names)
        return busy, waiting

    # --- events ---

    def on_event(self, event: events.Event) -> None:
        match event:
            case events.Submitted():
                self._submitted.setdefault(event.key, event)
            case events.FrontendConnected():
                self._drop_frontend(event.frontend_id)
                self._incarnations[event.frontend_id] = event.incarnation
            case events.FrontendLost():
                if self._incarnations.get(event.frontend_id) == event.incarnation:
                    del self._incarnations[event.frontend_id]
                    self._drop_frontend(event.frontend_id)

    def _drop_frontend(self, frontend_id: str) -> None:
        """Nobody hears of these any more: they count as aborted."""
        for key in [key for key in self._open if key.frontend_id == frontend_id]:
            num_left = self._open[key].num_unfinished
            self._vllm.number("vllm:request_success_total").add(num_left, "abort")
            self._forget(key)

    # --- commands ---

    def on_command(self, command: commands.Command, *, now_ns: int) -> None:
        match command:
            case commands.Tokens():
                self._on_tokens(command, now_ns)
            case commands.Accepted():
                self._on_accepted(command, now_ns)
            case commands.Started():
                self._on_started(command)
            case commands.Finished():
                self._on_finished(command)
            case commands.Rejected():
                self._own.number("loraplex_scheduler_errors_total").add(1, "rejected", command.error.reason)

    def end_turn(self) -> None:
        self._submitted.clear()

    def _on_accepted(self, accepted: commands.Accepted, now_ns: int) -> None:
        submitted = self._submitted.get(accepted.key)
        if submitted is None:
            return
        num_sequences = submitted.num_sequences
        self._open[accepted.key] = _Open(submitted=submitted, accepted_ns=now_ns, num_unfinished=num_sequences)
        self._vllm.histogram("vllm:request_params_n").observe(num_sequences)
        if submitted.max_tokens is not None:
            self._vllm.histogram("vllm:request_params_max_tokens").observe(submitted.max_tokens)

    def _on_started(self, started: commands.Started) -> None:
        request = self._open.get(started.key)
        if request is not None and started.adapters:
            request.names = tuple(adapter.name for adapter in started.adapters)
            request.digests = tuple(adapter.digest for adapter in started.adapters)
            self._digest_sets[request.digests] += 1

    def _on_tokens(self, tokens: commands.Tokens, now_ns: int) -> None:
        request, num_tokens = self._open.get(tokens.key), len(tokens.token_ids)
        self._num_output_tokens.add(num_tokens)
        if request is None:
            return
        last_ns = request.last_token_ns.get(tokens.index)
        request.last_token_ns[tokens.index] = now_ns
        if last_ns is None:
            self._ttft.observe((now_ns - request.accepted_ns) / _NS_PER_S)
            self._num_prompt_tokens.add(len(request.submitted.prompt_ids))
            last_ns, num_tokens = now_ns, num_tokens - 1
        for _ in range(num_tokens):
            self._itl.observe((now_ns - last_ns) / _NS_PER_S / num_tokens)

    def _on_finished(self, finished: commands.Finished) -> None:
        self._vllm.number("vllm:request_success_total").add(1, VLLM_REASONS[finished.reason])
        if finished.error is not None:
            self._own.number("loraplex_scheduler_errors_total").add(1, "failed", finished.error.reason)
            self._vllm.number("vllm:corrupted_requests_total").add(finished.error.reason == "NUMERICAL")
        self._own.number("loraplex_recomputed_tokens_total").add(finished.usage.num_recomputed_tokens)
        self._observe_sizes(finished)
        self._observe_times(finished.timing, finished.usage.num_output_tokens)
        request = self._open.get(finished.key)
        if request is None:
            return
        if finished.index not in request.last_token_ns and finished.reason is FinishReason.STOP_TOKEN:
            # It stopped with its first token, which is not part of the output.
            self._num_prompt_tokens.add(len(request.submitted.prompt_ids))
        request.num_unfinished -= 1
        if request.num_unfinished == 0:
            self._forget(finished.key)

    def _observe_sizes(self, finished: commands.Finished) -> None:
        self._vllm.histogram("vllm:request_prompt_tokens").observe(finished.usage.num_prompt_tokens)
        self._vllm.histogram("vllm:request_generation_tokens").observe(finished.usage.num_output_tokens)

    def _observe_times(self, timing: Timing, num_output_tokens: int) -> None:
        """What the sequence came to; one that failed in the queue has no time of inference."""
        observe = self._observe
        observe("e2e_request_latency_seconds", timing.total_ns)
        if timing.queued_ns is None:
            return
        observe("request_queue_time_seconds", timing.queued_ns)
        observe("request_inference_time_seconds", timing.total_ns - timing.queued_ns)
        if timing.first_token_ns is None:
            return
        decode_ns = timing.total_ns - timing.first_token_ns
        observe("request_prefill_time_seconds", timing.first_token_ns - timing.queued_ns)
        observe("request_decode_time_seconds", decode_ns)
        if num_output_tokens > 1:
            observe("request_time_per_output_token_seconds", decode_ns / (num_output_tokens - 1))

    def _observe(self, name: str, duration_ns: float) -> None:
        self._vllm.histogram(f"vllm:{name}").observe(duration_ns / _NS_PER_S)

    def _forget(self, key: events.RequestKey) -> None:
        digests = self._open.pop(key).digests
        if digests:
            self._digest_sets[digests] -= 1
            if not self._digest_sets[digests]:
                del self._digest_sets[digests]
