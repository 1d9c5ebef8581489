"""First-token deadlines: what will miss one is refused, what can no longer make one ends before it costs a prefill."""

from collections.abc import Mapping
from typing import Final

from loraplex_contract.errors import ResourceExhausted
from loraplex_scheduler.core.account import Accounts
from loraplex_scheduler.core.config import SECOND_NS, CoreConfig
from loraplex_scheduler.core.estimator import Estimator
from loraplex_scheduler.core.loader import Loader
from loraplex_scheduler.core.policy import Rules
from loraplex_scheduler.core.request import Request, Sequence
from loraplex_scheduler.core.waiting_room import WaitingRoom
from loraplex_scheduler.core.worker import Worker


class ServiceLevel:
    """Predicts, and says no."""

    def __init__(
        self,
        config: CoreConfig,
        rules: Rules,
        *,
        estimator: Estimator,
        accounts: Accounts,
        room: WaitingRoom,
        loader: Loader,
        workers: Mapping[str, Worker],
    ) -> None:
        self._config: Final = config
        self._rules: Final = rules
        self._estimator: Final = estimator
        self._accounts: Final = accounts
        self._room: Final = room
        self._loader: Final = loader
        self._workers: Final = workers

    def refusal(self, request: Request, *, now_ns: int) -> ResourceExhausted | None:
        """For a request that is about to be accepted."""
        deadline_ns = request.first_token_deadline_ns
        if deadline_ns is None or not self._rules.refuses_early:
            return None
        predicted_ns = self.predict_ns(request)
        if predicted_ns <= (deadline_ns - now_ns) * (1 + self._config.slo_margin):
            return None
        return slo_unattainable(predicted_ns, deadline_ns - now_ns)

    def predict_ns(self, request: Request) -> float:
        """Time to the first token if the request came now: the queue before it, its load, its prefill."""
        estimator, num_ahead = self._estimator, self._num_ahead(request)
        waits_ns = estimator.queue_ns(num_ahead)
        load_ns = min((self._load_ns(request, id) for id in request.places), default=0.0)
        return max(waits_ns, load_ns) + estimator.prefill_ns(len(request.prompt_ids))

    def _num_ahead(self, request: Request) -> int:
        """Admissions before it: what waits, but no more than a fair share for each tenant that has a backlog."""
        waiting = self._room.num_up_to_class(request.priority)
        if not waiting:
            return 0
        above = request.account.parent
        own = 0 if above is None else above.num_waiting
        num_tenants = self._accounts.num_backlogged_tenants + (own == 0)
        return min(waiting, (own + 1) * num_tenants - 1) + 1

    def _load_ns(self, request: Request, worker_id: str) -> float:
        worker = self._workers[worker_id]
        missing = [d for d in request.digests if not worker.residency.has_all((d,))]
        return self._estimator.load_ns(self._loader.num_pages(worker, missing)) if missing else 0.0

    def lateness(self, sequence: Sequence, *, now_ns: int) -> ResourceExhausted | None:
        """For one that waits, whether its prefill would be wasted."""
        deadline_ns = sequence.request.first_token_deadline_ns
        if deadline_ns is None or sequence.emitted or not self._rules.aborts_late:
            return None
        prefill_ns = self._estimator.prefill_ns(len(sequence.request.prompt_ids))
        if now_ns + prefill_ns <= deadline_ns:
            return None
        return slo_unattainable(self.predict_ns(sequence.request), deadline_ns - now_ns)


def slo_unattainable(predicted_ns: float, left_ns: int) -> ResourceExhausted:
    predicted_s, left_s = predicted_ns / SECOND_NS, max(0, left_ns) / SECOND_NS
    message = (
        f"scheduling.first_token_timeout: the first token is predicted in {predicted_s:.3f} s and {left_s:.3f} s "
        "are left: allow more time, or try again later"
    )
    metadata = {"predictedSeconds": f"{predicted_s:.3f}", "leftSeconds": f"{left_s:.3f}"}
    retry_delay_s = max(0.1, predicted_s - left_s)
    return ResourceExhausted(message, reason="SLO_UNATTAINABLE", metadata=metadata, retry_delay_s=retry_delay_s)
