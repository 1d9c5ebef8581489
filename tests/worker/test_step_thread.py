"""The step thread with a real engine and a fake model; every wait is bounded and for a condition."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from torch import Tensor

from loraplex_contract.errors import ResourceExhausted, Unavailable
from loraplex_worker.engine.command import AttachAdapter, Command, EvictAdapter, Grant, Reset, Retire
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason
from loraplex_worker.engine.report import Finish, StepReport
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.step_batch import StepBatch
from loraplex_worker.step_thread import StepThread
from tests.worker.engine.fake_decoder import FakeDecoder, fake_weights, small_engine
from tests.worker.engine.sequence_run import SequenceRun, admit, run_alone, using

_WAIT_S = 20.0


class GatedDecoder(FakeDecoder):
    """A model whose forward pass the test can hold, or break."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failure: BaseException | None = None

    def forward(self, batch: StepBatch, kv: KvCache) -> Tensor:
        self.entered.set()
        assert self.gate.wait(_WAIT_S)
        if self.failure is not None:
            raise self.failure
        return super().forward(batch, kv)


@dataclasses.dataclass
class Listener:
    """What the thread told, under a condition to wait on."""

    changed: threading.Condition = dataclasses.field(default_factory=threading.Condition)
    reports: list[StepReport] = dataclasses.field(default_factory=list)
    refusals: list[tuple[Command, CommandRefused]] = dataclasses.field(default_factory=list)
    applied: list[Command] = dataclasses.field(default_factory=list)
    fatal: list[BaseException] = dataclasses.field(default_factory=list)
    sequences: dict[int, SequenceRun] = dataclasses.field(default_factory=dict)

    def on_report(self, report: StepReport) -> None:
        with self.changed:
            self.reports.append(report)
            for emission in report.emissions:
                self.sequences.setdefault(emission.sequence_id, SequenceRun()).take(emission)
            self.changed.notify_all()

    def on_refused(self, command: Command, refusal: CommandRefused) -> None:
        with self.changed:
            self.refusals.append((command, refusal))
            self.changed.notify_all()

    def on_applied(self, command: Command) -> None:
        with self.changed:
            self.applied.append(command)
            self.changed.notify_all()

    def on_fatal(self, error: BaseException) -> None:
        with self.changed:
            self.fatal.append(error)
            self.changed.notify_all()

    def wait_for(self, is_true: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(is_true, _WAIT_S), "it did not happen in time"

    def wait_for_end_of(self, sequence_id: int) -> SequenceRun:
        self.wait_for(lambda: sequence_id in self.sequences and self.sequences[sequence_id].finish)
        return self.sequences[sequence_id]


@pytest.fixture
def model() -> GatedDecoder:
    return GatedDecoder()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def thread(model: GatedDecoder, listener: Listener) -> Iterator[StepThread]:
    thread = make_thread(model, listener)
    thread.start()
    yield thread
    model.gate.set()
    assert thread.stop(_WAIT_S)


def make_thread(model: FakeDecoder, listener: Listener, *, max_pending: int = 1000) -> StepThread:
    return StepThread(
        small_engine(model),
        on_report=listener.on_report,
        on_refused=listener.on_refused,
        on_applied=listener.on_applied,
        on_fatal=listener.on_fatal,
        max_pending=max_pending,
        check_interval_s=0.0,
    )


def attach(digest: str) -> AttachAdapter:
    return AttachAdapter(digest=digest, weights=fake_weights(7), num_pages=2)


def test_sequences_run_to_their_end_as_they_would_alone(thread: StepThread, listener: Listener):
    thread.submit([attach("a"), admit(1, adapters=using("a")), admit(2, adapters=using("a"))])
    alone = small_engine()
    alone.apply(attach("a"))
    expected = run_alone(alone, admit(1, adapters=using("a")))
    assert listener.wait_for_end_of(1) == expected
    assert listener.wait_for_end_of(2) == expected


def test_it_sleeps_without_work_and_wakes_for_a_command(thread: StepThread, listener: Listener):
    thread.submit([admit(1, grant_tokens=2, max_tokens=4)])
    listener.wait_for(lambda: len(listener.reports) == 2)
    assert len(listener.sequences[1].tokens) == 2
    thread.submit([Grant(sequence_id=1, grant_tokens=4)])
    assert len(listener.wait_for_end_of(1).tokens) == 4
    assert len(listener.reports) == 4


def test_a_refusal_names_the_command_and_the_loop_goes_on(thread: StepThread, listener: Listener):
    bad = admit(1, adapters=using("absent"))
    thread.submit([bad, admit(2)])
    assert listener.wait_for_end_of(2).finish is Finish.MAX_TOKENS
    ((command, refusal),) = listener.refusals
    assert command is bad
    assert refusal.reason is RefusalReason.ADAPTER_NOT_ATTACHED
    assert listener.fatal == []


def test_attaching_and_evicting_is_confirmed(thread: StepThread, listener: Listener):
    commands: list[Command] = [attach("a"), EvictAdapter(digest="a"), attach("b")]
    thread.submit(commands)
    listener.wait_for(lambda: len(listener.applied) == 3)
    assert listener.applied == commands


def test_commands_that_come_during_a_step_are_applied_before_the_next(
    thread: StepThread, listener: Listener, model: GatedDecoder
):
    model.gate.clear()
    thread.submit([admit(1)])
    assert model.entered.wait(_WAIT_S)
    thread.submit([Retire(sequence_id=1), admit(2, max_tokens=1)])
    assert thread.progress().num_pending == 2
    model.gate.set()
    listener.wait_for_end_of(2)
    assert len(listener.sequences[1].tokens) == 1


def test_a_reset_leaves_nothing_behind(thread: StepThread, listener: Listener, model: GatedDecoder):
    model.gate.clear()
    thread.submit([attach("a"), admit(1, adapters=using("a"), grant_tokens=2), admit(2, max_tokens=20)])
    assert model.entered.wait(_WAIT_S)
    thread.submit([Reset(), admit(3, max_tokens=1)])
    model.gate.set()
    listener.wait_for_end_of(3)
    assert listener.reports[-1].pages.free == 64
    assert listener.applied[-1] == Reset()
    assert listener.sequences[1].finish is listener.sequences[2].finish is None


def test_progress_tells_an_idle_loop_from_one_that_hangs(thread: StepThread, listener: Listener, model: GatedDecoder):
    model.gate.clear()
    thread.submit([admit(1, max_tokens=1)])
    assert model.entered.wait(_WAIT_S)
    hanging = thread.progress()
    assert hanging.is_alive
    assert not hanging.is_idle
    assert hanging.loop_age_ns(hanging.turn_ns + 5) == 5
    assert hanging.loop_age_ns(time.monotonic_ns()) > 0
    model.gate.set()
    listener.wait_for_end_of(1)
    deadline_s = time.monotonic() + _WAIT_S
    while not thread.progress().is_idle:
        assert time.monotonic() < deadline_s
    idle = thread.progress()
    assert (idle.num_steps, idle.num_pending, idle.loop_age_ns(time.monotonic_ns())) == (1, 0, 0)


def test_a_full_inbox_refuses_all_of_a_submission(model: GatedDecoder, listener: Listener):
    thread = make_thread(model, listener, max_pending=2)
    thread.submit([admit(1, max_tokens=1)])
    with pytest.raises(ResourceExhausted, match="1 commands of at most 2"):
        thread.submit([admit(2), admit(3)])
    with thread:
        listener.wait_for_end_of(1)
    assert set(listener.sequences) == {1}


@pytest.mark.parametrize("failure", [RuntimeError("device lost"), MemoryError(), AssertionError("ledger")])
def test_a_step_that_raises_is_reported_once_and_ends_the_loop(
    thread: StepThread, listener: Listener, model: GatedDecoder, failure: BaseException
):
    model.failure = failure
    thread.submit([admit(1), admit(2)])
    listener.wait_for(lambda: listener.fatal)
    assert thread.stop(_WAIT_S)
    assert listener.fatal == [failure]
    assert not thread.progress().is_alive
    with pytest.raises(Unavailable):
        thread.submit([admit(3)])


def test_a_callback_that_raises_is_fatal_too(listener: Listener):
    def broken(report: StepReport) -> None:
        raise ValueError("no loop")

    thread = StepThread(
        small_engine(),
        on_report=broken,
        on_refused=listener.on_refused,
        on_applied=listener.on_applied,
        on_fatal=listener.on_fatal,
    )
    with thread:
        thread.submit([admit(1)])
        listener.wait_for(lambda: listener.fatal)
    assert isinstance(listener.fatal[0], ValueError)


def test_an_error_after_stop_was_asked_for_is_not_fatal(model: GatedDecoder, listener: Listener):
    thread = make_thread(model, listener)
    thread.start()
    model.gate.clear()
    thread.submit([admit(1)])
    assert model.entered.wait(_WAIT_S)
    assert not thread.stop(0.01)
    model.failure = RuntimeError("too late")
    model.gate.set()
    assert thread.stop(_WAIT_S)
    assert listener.fatal == []


def test_stop_ends_a_loop_with_work_in_bounded_time_and_may_be_repeated(thread: StepThread, listener: Listener):
    thread.submit([admit(sequence_id, max_tokens=50, grant_tokens=10) for sequence_id in range(5)])
    listener.wait_for(lambda: listener.reports)
    assert thread.stop(_WAIT_S)
    assert thread.stop(_WAIT_S)
    with pytest.raises(Unavailable):
        thread.submit([])


def test_a_thread_that_never_started_can_be_stopped(model: GatedDecoder, listener: Listener):
    assert make_thread(model, listener).stop()
