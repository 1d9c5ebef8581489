"""The core under every order of events. See ``core_machine.py``; ``test_core_mutants.py`` shows that it can fail."""

import dataclasses

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.scheduler.core_machine import CONFIG, CoreMachine, OneWorkerMachine

SETTINGS = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class CappedMachine(CoreMachine):
    config = dataclasses.replace(CONFIG, max_adapters_per_step=1, admission_watermark=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [CoreMachine, OneWorkerMachine, CappedMachine])
def test_every_order_of_events_keeps_the_invariants(machine):
    run_state_machine_as_test(machine, settings=SETTINGS)
