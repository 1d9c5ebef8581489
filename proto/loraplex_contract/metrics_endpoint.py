"""``/metrics`` over plain HTTP, on threads of its own: the event loop only copies its numbers when asked.

No credentials and no TLS: bind it where only the collector reaches it.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from loraplex_contract.metrics import Family, Kind
from loraplex_contract.metrics_address import split_address
from loraplex_contract.process_metrics import ProcessMetrics

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 8
COPY_TIMEOUT_S: Final = 5.0
"""A loop that does not come to copy its numbers in time makes the scrape fail, which is news too."""
_SOCKET_TIMEOUT_S: Final = 10.0

Collect = Callable[[], Iterable[Family]]


@contextlib.contextmanager
def metrics_served(address: str, collect: Collect, *, process: str, name: str) -> Iterator[str]:
    """Serves while it is open; nothing at all where ``address`` is empty.

    Args:
        address: HOST:PORT; port 0 takes any free one.
        collect: called on the running loop, once for each scrape.
        process: e.g. ``scheduler``.
        name: which one of them.

    Yields:
        The bound address, or "".

    Raises:
        OSError: the address cannot be bound.
    """
    if not address:
        yield ""
        return
    common = ProcessMetrics(process=process, name=name)
    loop = asyncio.get_running_loop()
    server = _bound(address, lambda: _copy_on(loop, lambda: [*collect(), *common.table.collect()]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="metrics")
    common.start()
    thread.start()
    try:
        host, _ = split_address(address)
        yield f"[{host}]:{server.server_port}" if ":" in host else f"{host}:{server.server_port}"
    finally:
        common.stop()
        server.shutdown()
        server.server_close()
        thread.join()


def _bound(address: str, copy: Collect) -> "_Server":
    host, port = split_address(address)
    try:
        return _Server(host, port, copy)
    except OSError as error:
        raise OSError(error.errno, f"metrics_listen={address}: {error.strerror or error}") from None


def _copy_on(loop: asyncio.AbstractEventLoop, collect: Collect) -> Iterable[Family]:
    """Called on a server's thread; the numbers are copied between two turns of the loop. Raises TimeoutError."""
    answer: concurrent.futures.Future[Iterable[Family]] = concurrent.futures.Future()

    def copy() -> None:
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(collect())
            except Exception as error:
                answer.set_exception(error)

    loop.call_soon_threadsafe(copy)
    try:
        return answer.result(COPY_TIMEOUT_S)
    finally:
        answer.cancel()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, copy: Collect) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._copy = copy
        self._process: Final = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def text(self) -> bytes:
        return generate_latest(_Families(self._copy())) + generate_latest(self._process)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A collector that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _SOCKET_TIMEOUT_S
    server_version = "loraplex"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, explain="/metrics is all there is")
            return
        try:
            body = cast("_Server", self.server).text()
        except Exception as error:
            _log.warning("a scrape failed", exc_info=None if isinstance(error, TimeoutError) else error)
            self.send_error(503, explain="the process did not come to it in time")
            return
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line."""


class _Families(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield _metric(family)


def _metric(family: Family) -> Metric:
    spec = family.spec
    if spec.kind is Kind.HISTOGRAM:
        return _histogram(family)
    make = CounterMetricFamily if spec.kind is Kind.COUNTER else GaugeMetricFamily
    metric = make(spec.name, spec.help, labels=family.label_names)
    for labels, value in family.numbers.items():
        metric.add_metric(labels, value)
    return metric


def _histogram(family: Family) -> Metric:
    metric = HistogramMetricFamily(family.spec.name, family.spec.help, labels=family.label_names)
    bounds = [*(str(bound) for bound in family.spec.buckets), "+Inf"]
    for labels, distribution in family.distributions.items():
        buckets = list(zip(bounds, distribution.cumulative, strict=True))
        metric.add_metric(labels, buckets, distribution.total)
    return metric
