"""The one place where requests end: each sequence once, and with the last one the leases go."""

from collections.abc import Callable
from typing import Final

from loraplex_contract.errors import LoraplexError
from loraplex_scheduler.core.account import Accounts
from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.command import Command, Finished
from loraplex_scheduler.core.finish import FinishReason
from loraplex_scheduler.core.lifecycle import State
from loraplex_scheduler.core.request import Request, Sequence
from loraplex_scheduler.core.request_table import RequestTable
from loraplex_scheduler.core.standing import Standing


class Endings:
    """Ends sequences and requests; exactly one Finished goes out for each sequence, unless its frontend is gone."""

    def __init__(
        self,
        *,
        requests: RequestTable,
        standing: Standing,
        catalog: Catalog,
        accounts: Accounts,
        emit: Callable[[Command], None],
    ) -> None:
        self._accounts: Final = accounts
        self._requests: Final = requests
        self._standing: Final = standing
        self._catalog: Final = catalog
        self._emit: Final = emit

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        now_ns: int,
        stop_token_id: int | None = None,
        error: LoraplexError | None = None,
        num_output_tokens: int | None = None,
        is_worker_done: bool = False,
    ) -> None:
        """Args as in Finished; ``num_output_tokens`` where fewer count than were sent."""
        self._standing.end(sequence, now_ns=now_ns, is_worker_done=is_worker_done)
        self._emit(
            Finished(
                key=sequence.request.key,
                index=sequence.index,
                reason=reason,
                usage=sequence.usage(num_output_tokens),
                timing=sequence.timing(now_ns),
                stop_token_id=stop_token_id,
                error=error,
            )
        )
        self._count_down(sequence.request)

    def fail(self, sequence: Sequence, error: LoraplexError, *, now_ns: int) -> None:
        self.finish(sequence, FinishReason.ERROR, now_ns=now_ns, error=error)

    def finish_all(
        self, request: Request, reason: FinishReason, *, now_ns: int, error: LoraplexError | None = None
    ) -> None:
        """End every sequence that is not done."""
        for sequence in request.unfinished():
            self.finish(sequence, reason, now_ns=now_ns, error=error)

    def fail_all(self, request: Request, error: LoraplexError, *, now_ns: int) -> None:
        self.finish_all(request, FinishReason.ERROR, now_ns=now_ns, error=error)

    def drop(self, request: Request, *, now_ns: int) -> None:
        """Its frontend is gone: nobody is told."""
        for sequence in request.unfinished():
            self._standing.end(sequence, now_ns=now_ns, is_worker_done=False)
            self._count_down(request)

    def _count_down(self, request: Request) -> None:
        request.num_unfinished -= 1
        if request.num_unfinished == 0:
            assert all(sequence.state is State.DONE for sequence in request.sequences)
            self._requests.remove(request)
            self._catalog.release(request.tenant, request.adapters)
            self._accounts.leave(request.account)
