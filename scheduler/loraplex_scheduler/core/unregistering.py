"""Names that are on their way out: their versions are freed everywhere before the shell hears that they are gone."""

from collections.abc import Callable, Iterable
from typing import Final

from loraplex_contract.errors import Cancelled
from loraplex_scheduler.core.catalog import AdapterEntry, Catalog
from loraplex_scheduler.core.command import AdapterGone, Command, VersionReleased
from loraplex_scheduler.core.endings import Endings
from loraplex_scheduler.core.event import AdapterUnregistered, UnregisterMode
from loraplex_scheduler.core.finish import FinishReason
from loraplex_scheduler.core.loader import Loader
from loraplex_scheduler.core.request_table import RequestTable
from loraplex_scheduler.core.worker import Worker


class Unregistering:
    """Drains names, then frees what only they pointed at."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        requests: RequestTable,
        endings: Endings,
        loader: Loader,
        workers: dict[str, Worker],
        emit: Callable[[Command], None],
    ) -> None:
        self._catalog: Final = catalog
        self._requests: Final = requests
        self._endings: Final = endings
        self._loader: Final = loader
        self._workers: Final = workers
        self._emit: Final = emit

    def begin(self, event: AdapterUnregistered, *, now_ns: int) -> None:
        """Repeating it is harmless, and CANCEL after DRAIN cancels."""
        if not self._catalog.drain(event.tenant, event.name):
            self._emit(AdapterGone(tenant=event.tenant, name=event.name))
        elif event.mode is UnregisterMode.CANCEL:
            self._cancel_users(event, now_ns=now_ns)

    def _cancel_users(self, event: AdapterUnregistered, *, now_ns: int) -> None:
        message = f"adapter {event.name!r} was unregistered while the request ran"
        for request in self._requests:
            if request.tenant == event.tenant and any(part.name == event.name for part in request.adapters):
                error = Cancelled(message, reason="ADAPTER_UNREGISTERED")
                self._endings.finish_all(request, FinishReason.CANCELLED, now_ns=now_ns, error=error)

    def settle(self, *, now_ns: int) -> None:
        """Go on with every name that has no lease left; to be called whenever a lease or an adapter may have gone."""
        for entry in self._catalog.drained():
            digests = self._catalog.sole_digests(entry)
            if self._are_released(digests, now_ns=now_ns):
                self._complete(entry, digests)

    def _are_released(self, digests: Iterable[str], *, now_ns: int) -> bool:
        """Every worker is asked, whatever the others answer."""
        held = [
            digest
            for worker in self._workers.values()
            for digest in digests
            if not self._loader.release(worker, digest, now_ns=now_ns)
        ]
        return not held

    def _complete(self, entry: AdapterEntry, digests: Iterable[str]) -> None:
        self._catalog.remove(entry)
        for digest in digests:
            self._emit(VersionReleased(digest=digest))
        self._emit(AdapterGone(tenant=entry.tenant, name=entry.name))
