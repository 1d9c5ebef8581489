"""Workers that are killed and frozen under many streams: on the real processes."""

import pytest

from tests.e2e.processes import cluster
from tests.faults.report import MAX_DETECTION_S
from tests.faults.service import FaultService
from tests.faults.soak import WORKERS, soak

pytestmark = pytest.mark.e2e


async def test_killed_and_frozen_workers_cost_no_token(tiny_model, tiny_adapters, tmp_path):
    """Four blows of the soak: two of each kind, under 32 streams. ``python -m tests.faults.soak`` gives fifty."""
    with cluster(tmp_path / "service", tiny_model) as running:
        service = FaultService(running, tiny_adapters, WORKERS)
        report = await soak(service, num_blows=4, seed=3)
        report.verdict.assert_clean()
        assert report.num_blows == {"SIGKILL": 2, "SIGSTOP": 2}
        assert report.num_losses >= 4
        assert report.verdict.num_resumed > 0
        assert max(blow.detection_s for blow in report.blows) < MAX_DETECTION_S
        assert set(service.stop().values()) == {0}
