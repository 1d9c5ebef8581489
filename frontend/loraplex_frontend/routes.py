"""Which request each entry of the scheduler's turns belongs to."""

from typing import Any, Protocol

from loraplex.worker.v1 import frontend_link_pb2
from loraplex_contract import status, token_bytes
from loraplex_contract.errors import LoraplexError


class Route(Protocol):
    """A request on the link; see ``Generation``."""

    def on_accepted(self, queue_position: int) -> None: ...

    def on_rejected(self, error: LoraplexError) -> None: ...

    def on_started(self, started: frontend_link_pb2.LinkStarted) -> None: ...

    def on_prompt_logprobs(self, entries: Any) -> None: ...

    def on_tokens(self, index: int, first_token: int, token_ids: Any, logprobs: Any) -> None: ...

    def on_ended(self, ended: frontend_link_pb2.LinkEnded) -> None: ...

    def on_lost(self, error: LoraplexError) -> None: ...


class Routes:
    """The open requests of one link by handle. An entry for a request that is over on this side is dropped."""

    def __init__(self) -> None:
        self._by_handle: dict[int, Route] = {}

    def __len__(self) -> int:
        return len(self._by_handle)

    def __contains__(self, handle: int) -> bool:
        return handle in self._by_handle

    def add(self, handle: int, route: Route) -> None:
        self._by_handle[handle] = route

    def discard(self, handle: int) -> None:
        self._by_handle.pop(handle, None)

    def lose(self, error: LoraplexError) -> None:
        """Tells every request that the link is gone, and forgets them all."""
        routes, self._by_handle = self._by_handle, {}
        for route in routes.values():
            route.on_lost(error)

    def apply(self, down: frontend_link_pb2.Downward) -> None:
        """One turn of the scheduler, in the order of its fields."""
        routes = self._by_handle
        for accepted in down.accepted:
            if route := routes.get(accepted.handle):
                route.on_accepted(accepted.queue_position)
        for rejected in down.rejected:
            if route := routes.get(rejected.handle):
                route.on_rejected(status.error_from_pb(rejected.error))
        for started in down.started:
            if route := routes.get(started.handle):
                route.on_started(started)
        for prompt in down.prompt_logprobs:
            if route := routes.get(prompt.handle):
                route.on_prompt_logprobs(prompt.tokens)
        if down.HasField("tokens"):
            self._apply_tokens(down.tokens)
        for ended in down.ended:
            if route := routes.get(ended.handle):
                route.on_ended(ended)

    def _apply_tokens(self, columns: Any) -> None:
        token_ids = token_bytes.unpack(columns.token_ids_le32)
        entries = zip(columns.keys, columns.indexes, columns.first_tokens, columns.counts, strict=True)
        start = 0
        for number, (handle, index, first_token, count) in enumerate(entries):
            end = start + count
            route = self._by_handle.get(handle)
            if route is not None:
                logprobs = columns.logprobs[number].tokens if number in columns.logprobs else ()
                route.on_tokens(index, first_token, token_ids[start:end], logprobs)
            start = end
