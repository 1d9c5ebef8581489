"""One look at a service: the cluster as the scheduler sees it, and the metrics of any processes that have some."""

import dataclasses
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Final

from loraplex_cli.console import CommandFailed
from loraplex_client import Cluster

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 16 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSamples:
    """Everything that one process showed."""

    process: str
    """``worker``, ``frontend`` or ``scheduler``."""
    name: str
    samples: tuple[Sample, ...]

    def total(self, name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(sample.value for sample in self.samples if sample.name == name and wanted <= sample.labels.items())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    time_s: float
    cluster: Cluster
    processes: tuple[ProcessSamples, ...]
    silent: tuple[str, ...]
    """Addresses that did not answer."""

    def worker(self, name: str) -> ProcessSamples | None:
        return next((p for p in self.processes if (p.process, p.name) == ("worker", name)), None)

    def total(self, process: str, name: str, **labels: str) -> float | None:
        """Over all processes of a kind; None if there is none."""
        found = [p.total(name, **labels) for p in self.processes if p.process == process]
        return sum(found) if found else None


def read(cluster: Cluster, addresses: Sequence[str]) -> Reading:
    """Asks every address. Raises CommandFailed where the parser of metrics is not installed."""
    processes, silent = [], []
    for address in addresses:
        try:
            processes.append(_process(_text(address)))
        except (OSError, ValueError, urllib.error.URLError):
            silent.append(address)
    return Reading(time_s=time.monotonic(), cluster=cluster, processes=tuple(processes), silent=tuple(silent))


def _text(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as answer:
        body: bytes = answer.read(MAX_BYTES)
    return body.decode()


def _process(text: str) -> ProcessSamples:
    # Here and not at the top: the bare install is the client, which has no use for it.
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        raise CommandFailed("prometheus-client is not installed: pip install 'loraplex[serve]'") from None
    samples = tuple(
        Sample(name=sample.name, labels=sample.labels, value=sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )
    build = next((sample.labels for sample in samples if sample.name == "loraplex_build_info"), {})
    return ProcessSamples(process=build.get("process", ""), name=build.get("name", ""), samples=samples)
