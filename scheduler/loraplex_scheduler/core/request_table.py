"""Every request that lives, and the ways to find one."""

from collections.abc import Iterator

from loraplex_scheduler.core.event import RequestKey
from loraplex_scheduler.core.request import Request


class RequestTable:
    """All live requests, by key, by (tenant, request id) and by number."""

    def __init__(self) -> None:
        self._by_key: dict[RequestKey, Request] = {}
        self._by_id: dict[tuple[str, str], Request] = {}
        self._inflight: dict[str, int] = {}
        """By tenant."""

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Request]:
        """Over a snapshot, in the order of arrival."""
        return iter(list(self._by_key.values()))

    def get(self, key: RequestKey) -> Request | None:
        return self._by_key.get(key)

    def with_id(self, tenant: str, request_id: str) -> Request | None:
        return self._by_id.get((tenant, request_id))

    def num_inflight(self, tenant: str) -> int:
        return self._inflight.get(tenant, 0)

    def add(self, request: Request) -> None:
        assert request.key not in self._by_key, f"{request.key} is in use"
        self._by_key[request.key] = request
        self._by_id[request.tenant, request.request_id] = request
        self._inflight[request.tenant] = self.num_inflight(request.tenant) + 1

    def remove(self, request: Request) -> None:
        del self._by_key[request.key]
        del self._by_id[request.tenant, request.request_id]
        self._inflight[request.tenant] -= 1
        if self._inflight[request.tenant] == 0:
            del self._inflight[request.tenant]
