"""Counts requests as their clients see them: each is received once, and is over once."""

from typing import Final

from loraplex.v1 import generation_pb2
from loraplex_contract import status
from loraplex_contract.errors import LoraplexError
from loraplex_contract.metrics import Labels, MetricTable
from loraplex_contract.top_labels import TopLabels
from loraplex_frontend.metrics import BASE, UNRESOLVED

CLIENT_GONE: Final = ("CANCELLED", "CLIENT_GONE")
_OK: Final = ("OK", "OK")
_REASON_PREFIX: Final = len("FINISH_REASON_")


class RequestMetrics:
    """Lives on the loop."""

    def __init__(self, table: MetricTable, *, max_adapters: int) -> None:
        self._table = table
        self._top = TopLabels(max_adapters, self._drop)
        self.itl = table.histogram("loraplex_itl_seconds").series()

    def on_received(self) -> None:
        self._table.number("loraplex_requests_received_total").add()

    def on_refused(self, tenant: str, code: str, reason: str) -> None:
        """Over before it was sent to the scheduler."""
        self._count(self._top.place((tenant, UNRESOLVED)), code, reason)

    def on_sent(self, tenant: str, *, num_sequences: int, received_s: float, now_s: float) -> "RequestRecord":
        self._table.histogram("loraplex_prepare_seconds").observe(now_s - received_s)
        return RequestRecord(self, tenant, num_sequences=num_sequences, received_s=received_s)

    def on_sequence_end(self, finish: generation_pb2.Finish) -> None:
        reason = generation_pb2.FinishReason.Name(finish.reason)[_REASON_PREFIX:]
        self._table.number("loraplex_sequences_total").add(1, reason)

    def on_over(
        self, labels: Labels, outcome: tuple[str, str], *, num_prompt_tokens: int, num_output_tokens: int
    ) -> None:
        labels = self._top.place(labels)
        self._count(labels, *outcome)
        tokens = self._table.number("loraplex_tokens_total")
        tokens.add(num_prompt_tokens, *labels, "prompt")
        tokens.add(num_output_tokens, *labels, "output")

    def observe(self, name: str, duration_s: float, adapter_state: str) -> None:
        self._table.histogram(f"loraplex_{name}").observe(duration_s, adapter_state)

    def _count(self, labels: Labels, code: str, reason: str) -> None:
        self._table.number("loraplex_requests_total").add(1, *labels, code, reason)

    def _drop(self, labels: Labels) -> None:
        for name in ("loraplex_requests_total", "loraplex_tokens_total"):
            self._table.number(name).drop(labels)


class RequestRecord:
    """What is known of one request between its submission to the scheduler and its end."""

    __slots__ = ("_adapter", "_finish", "_first_s", "_last_s", "_metrics", "_received_s", "_tenant")

    def __init__(self, metrics: RequestMetrics, tenant: str, *, num_sequences: int, received_s: float) -> None:
        self._metrics = metrics
        self._tenant = tenant
        self._received_s = received_s
        self._adapter: str | None = None
        """What it resolved to, once it has."""
        self._first_s: float | None = None
        self._last_s: list[float | None] = [None] * num_sequences
        self._finish: generation_pb2.Finish | None = None
        """Of the first sequence that the scheduler ended."""

    def on_started(self, names: list[str]) -> None:
        self._adapter = "+".join(names) or BASE

    def on_tokens(self, index: int, num_tokens: int, now_s: float) -> None:
        """``num_tokens`` of them, 0 for none, came at once."""
        if not num_tokens:
            return
        last_s, self._last_s[index] = self._last_s[index], now_s
        if last_s is None:
            self._first_s = now_s if self._first_s is None else self._first_s
            last_s, num_tokens = now_s, num_tokens - 1
        for _ in range(num_tokens):
            self._metrics.itl.observe((now_s - last_s) / num_tokens)

    def on_sequence_end(self, finish: generation_pb2.Finish) -> None:
        self._metrics.on_sequence_end(finish)
        if self._finish is None and finish.HasField("timing"):
            self._finish = finish

    def on_over(
        self,
        *,
        error: LoraplexError | None,
        is_abandoned: bool,
        num_prompt_tokens: int,
        num_output_tokens: int,
        now_s: float,
    ) -> None:
        if error is not None:
            outcome = (status.code_of(error).name, error.reason)
        else:
            outcome = CLIENT_GONE if is_abandoned else _OK
        self._metrics.on_over(
            (self._tenant, self._adapter or UNRESOLVED),
            outcome,
            num_prompt_tokens=num_prompt_tokens if self._adapter is not None else 0,
            num_output_tokens=num_output_tokens,
        )
        if self._adapter is not None:
            self._observe_times(now_s)

    def _observe_times(self, now_s: float) -> None:
        state = self._adapter_state()
        self._metrics.observe("e2e_seconds", now_s - self._received_s, state)
        if self._first_s is not None:
            self._metrics.observe("ttft_seconds", self._first_s - self._received_s, state)
        if self._finish is not None and self._finish.timing.HasField("queued"):
            self._metrics.observe("queue_seconds", self._finish.timing.queued.ToNanoseconds() / 1e9, state)

    def _adapter_state(self) -> str:
        if self._adapter == BASE:
            return "base"
        if self._finish is None:
            return "unknown"
        return "cold" if self._finish.timing.adapter_load.ToNanoseconds() else "hot"
