"""A real scheduler and a real frontend in processes of their own; adapters need no weights of the model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.processes import Cluster, cluster
from tests.frontend.tiny_model import write_model_folder


@contextlib.contextmanager
def adapter_service(folder: Path, *flags: str) -> Iterator[tuple[str, Cluster]]:
    """Address of the frontend, which may read all of ``folder``."""
    model = write_model_folder(folder / "model")
    with cluster(folder, model) as running:
        running.start_scheduler()
        frontend = running.start_frontend("--adapter-roots", str(folder), *flags)
        yield frontend.ports()["listen"], running
