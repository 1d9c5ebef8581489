"""All clients of a simulation: they ask when their workload says so, and keep what they hear as a real client would."""

import array
import enum
from typing import Final

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core.adapter import AdapterPart
from loraplex_scheduler.core.event import CancelRequested, RequestKey, Submitted
from loraplex_scheduler.core.finish import FinishReason
from loraplex_scheduler.core.sampling import Sampling
from loraplex_scheduler.simulation.workload import Arrival, Workload

FRONTEND: Final = "clients"
_GREEDY: Final = Sampling(seed=1)


class Outcome(enum.Enum):
    """How a request ended."""

    FINISHED = "finished"
    REJECTED = "rejected"
    """Refused when it came."""
    FAILED = "failed"
    """Ended by an error after it was accepted: an early abort, a deadline."""
    UNFINISHED = "unfinished"
    """Cancelled at the horizon."""


class ClientRequest:
    """One request as its client sees it."""

    __slots__ = (
        "admitted_ns",
        "arrival",
        "end_ns",
        "first_token_ns",
        "last_token_ns",
        "num_output",
        "outcome",
        "reason",
    )

    def __init__(self, arrival: Arrival) -> None:
        self.arrival: Final = arrival
        self.admitted_ns: int | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns = 0
        self.num_output = 0
        self.end_ns: int | None = None
        self.outcome: Outcome | None = None
        self.reason = ""
        """Of an error."""


class VirtualClients:
    """Requests by their number, which is also the first token of their prompt: no two prompts share a page."""

    def __init__(self, workload: Workload) -> None:
        self._workload: Final = workload
        self.requests: Final = tuple(ClientRequest(arrival) for arrival in workload.arrivals)
        self.inter_token_ns: Final = array.array("q")
        """Gaps between the tokens of the watched tenants' requests."""
        self.num_recomputed_tokens = 0
        self.num_open = len(self.requests)
        longest = max((arrival.num_prompt_tokens for arrival in workload.arrivals), default=1)
        self._padding = (0,) * longest

    def submit(self, number: int) -> Submitted:
        arrival, workload = self.requests[number].arrival, self._workload
        return Submitted(
            key=RequestKey(FRONTEND, number),
            tenant=arrival.tenant,
            request_id=str(number),
            prompt_ids=(number, *self._padding[: arrival.num_prompt_tokens - 1]),
            adapters=() if arrival.adapter is None else (AdapterPart(name=arrival.adapter),),
            sampling=_GREEDY,
            max_tokens=arrival.num_output_tokens,
            priority=arrival.priority,
            first_token_deadline_ns=arrival.time_ns + workload.slo_ns if workload.sends_deadline else None,
        )

    def cancel_open(self) -> list[CancelRequested]:
        """For everything that has been submitted and has no end."""
        return [
            CancelRequested(frontend_id=FRONTEND, key=RequestKey(FRONTEND, number))
            for number, request in enumerate(self.requests)
            if request.outcome is None
        ]

    def hear(self, command: commands.FrontendCommand, now_ns: int) -> None:
        match command:
            case commands.Tokens():
                self._hear_tokens(command, now_ns)
            case commands.Finished():
                self._hear_finish(command, now_ns)
            case commands.Rejected():
                request = self.requests[command.key.handle]
                self._end(request, Outcome.REJECTED, now_ns)
                request.reason = command.error.reason

    def admitted(self, number: int, now_ns: int) -> ClientRequest | None:
        """The request, at its first admission; None at a later one."""
        request = self.requests[number]
        if request.admitted_ns is not None:
            return None
        request.admitted_ns = now_ns
        return request

    def _hear_tokens(self, tokens: commands.Tokens, now_ns: int) -> None:
        request = self.requests[tokens.key.handle]
        assert tokens.first_index == request.num_output, "a token is missing or came twice"
        assert request.outcome is None, "a token after the end"
        request.num_output += len(tokens.token_ids)
        if request.first_token_ns is None:
            request.first_token_ns = now_ns
        elif self._is_watched(request):
            self.inter_token_ns.append(now_ns - request.last_token_ns)
        request.last_token_ns = now_ns

    def _is_watched(self, request: ClientRequest) -> bool:
        watched = self._workload.watched_tenants
        return watched is None or request.arrival.tenant in watched

    def _hear_finish(self, finished: commands.Finished, now_ns: int) -> None:
        request = self.requests[finished.key.handle]
        self.num_recomputed_tokens += finished.usage.num_recomputed_tokens
        if finished.reason is FinishReason.MAX_TOKENS:
            assert request.num_output == request.arrival.num_output_tokens, "tokens are missing at the end"
            self._end(request, Outcome.FINISHED, now_ns)
        elif finished.reason is FinishReason.CANCELLED:
            self._end(request, Outcome.UNFINISHED, now_ns)
        else:
            assert finished.error is not None, f"{finished.key} ended {finished.reason.value} without an error"
            self._end(request, Outcome.FAILED, now_ns)
            request.reason = finished.error.reason

    def _end(self, request: ClientRequest, outcome: Outcome, now_ns: int) -> None:
        assert request.outcome is None, "a request ended twice"
        request.outcome, request.end_ns = outcome, now_ns
        self.num_open -= 1
