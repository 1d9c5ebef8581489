"""The observer's books, from events and commands as the core gives them."""

import dataclasses

from loraplex_contract.errors import Internal
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.adapter import ResolvedAdapter
from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.core import SchedulerCore
from loraplex_scheduler.core.event import RequestKey
from loraplex_scheduler.core.finish import FinishReason
from loraplex_scheduler.core.statistics import CoreStatistics
from loraplex_scheduler.metrics_observer import MetricsObserver
from loraplex_scheduler.request_metrics import VLLM_REASONS

MS = 1_000_000
KEY = RequestKey("f", 1)
INFO = events.WorkerInfo(
    worker_id="w",
    epoch=1,
    device="cpu",
    num_pages=100,
    page_size=16,
    page_bytes=1024,
    adapter_parameter_bytes=2,
    max_sequences=8,
    max_step_tokens=64,
    max_context_tokens=512,
    vocab_size=100,
)


class Books:
    """An observer, and a real core to know the form of its statistics by."""

    def __init__(self) -> None:
        self.observer = MetricsObserver(model_name="m", term=1, max_adapters_per_step=0)
        self.core = SchedulerCore(CoreConfig())

    def turn(self, *turn: events.Event, gives: tuple[commands.Command, ...] = (), at_ms: int = 0) -> None:
        self.observer.on_turn(turn, gives, now_ns=at_ms * MS, duration_ns=MS)

    def accept(self, digest: str = "", key: RequestKey = KEY) -> None:
        adapters = (ResolvedAdapter(name=f"name-{digest}", number=1, digest=digest, weight=1.0),) if digest else ()
        submitted = events.Submitted(key=key, tenant="t", request_id=f"r{key.handle}", prompt_ids=(1, 2, 3))
        accepted = commands.Accepted(key=key, request_id=submitted.request_id, queue_position=0)
        self.turn(submitted, gives=(accepted, commands.Started(key=key, adapters=adapters, seed=1)))

    def show(self, **statistics: int) -> dict[str, dict[tuple[str, ...], float]]:
        """Numbers by metric, without the constant labels."""
        now = dataclasses.replace(self.core.statistics(), **statistics)  # type: ignore[arg-type]
        families = self.observer.collect(now, num_frontends=0)
        return {
            family.spec.name: {
                labels[len(labels) - len(family.spec.labels) :]: value for labels, value in family.numbers.items()
            }
            for family in families
        }


def changed(digest: str, state: events.WorkerAdapterState) -> events.AdapterChanged:
    error = Internal("no", reason="STORE_BROKEN") if state is events.WorkerAdapterState.FAILED else None
    return events.AdapterChanged(worker_id="w", epoch=1, digest=digest, state=state, error=error)


def test_a_request_whose_adapter_is_nowhere_waits_deferred_and_one_that_lacks_room_waits_for_capacity():
    books = Books()
    books.turn(events.WorkerConnected(info=INFO), changed("here", events.WorkerAdapterState.DEVICE))
    books.accept("here", RequestKey("f", 1))
    books.accept("away", RequestKey("f", 2))
    books.accept("", RequestKey("f", 3))
    shown = books.show()
    assert shown["vllm:num_requests_waiting"] == {(): 3}
    assert shown["vllm:num_requests_waiting_by_reason"] == {("deferred",): 1, ("capacity",): 2}
    assert shown["loraplex_adapter_lookups_total"] == {("device",): 1, ("absent",): 1, ("base",): 1}
    ((_, running, waiting),) = shown["vllm:lora_requests_info"]
    assert (running, waiting) == ("", "name-away,name-here")
    assert books.show(num_running_requests=1)["vllm:num_requests_waiting"] == {(): 2}


def test_an_adapter_that_left_the_device_or_went_with_its_worker_is_away_again():
    books = Books()
    books.turn(events.WorkerConnected(info=INFO), changed("a", events.WorkerAdapterState.DEVICE))
    books.turn(changed("a", events.WorkerAdapterState.EVICTED))
    books.accept("a", RequestKey("f", 1))
    books.turn(changed("a", events.WorkerAdapterState.DEVICE), events.WorkerLost(worker_id="w", epoch=1))
    books.accept("a", RequestKey("f", 2))
    assert books.show()["loraplex_adapter_lookups_total"] == {("absent",): 2}


def test_a_failed_load_is_counted_with_its_reason():
    books = Books()
    books.turn(events.WorkerConnected(info=INFO), changed("a", events.WorkerAdapterState.FAILED))
    assert books.show()["loraplex_adapter_load_failures_total"] == {("STORE_BROKEN",): 1}


def test_what_a_worker_of_an_older_registration_says_is_not_counted():
    books = Books()
    books.turn(events.WorkerConnected(info=dataclasses.replace(INFO, epoch=2)))
    books.turn(events.StepReported(worker_id="w", epoch=1, step=1, num_rows=3))
    assert books.show()["loraplex_scheduled_steps_total"] == {(): 0}


def test_the_requests_of_a_lost_frontend_count_as_aborted_and_are_forgotten():
    books = Books()
    books.turn(events.FrontendConnected(frontend_id="f", incarnation="2"))
    books.accept("a")
    books.turn(events.FrontendLost(frontend_id="f", incarnation="1"))
    assert books.show()["vllm:num_requests_waiting"] == {(): 1}
    books.turn(events.FrontendLost(frontend_id="f", incarnation="2"))
    shown = books.show()
    assert shown["vllm:request_success_total"] == {("abort",): 1}
    assert shown["vllm:num_requests_waiting"] == {(): 0}
    assert shown["vllm:num_requests_waiting_by_reason"] == {("deferred",): 0, ("capacity",): 0}


def test_tokens_that_come_together_share_the_time_since_the_last():
    books = Books()
    books.accept()
    for first_index, token_ids, at_ms in ((0, (7,), 100), (1, (8, 9), 300)):
        tokens = commands.Tokens(key=KEY, index=0, first_index=first_index, token_ids=token_ids, logprobs=None)
        books.turn(gives=(tokens,), at_ms=at_ms)
    families = {f.spec.name: f.distributions for f in books.observer.collect(books.core.statistics(), num_frontends=0)}
    (first,) = families["vllm:time_to_first_token_seconds"].values()
    (between,) = families["vllm:inter_token_latency_seconds"].values()
    assert (first.cumulative[-1], round(first.total, 6)) == (1, 0.1)
    # Two of 100 ms each.
    assert (between.cumulative[-1], round(between.total, 6)) == (2, 0.2)


def test_preemptions_add_up_over_the_registrations_of_workers():
    books = Books()

    def seen(epoch: int, num_preemptions: int) -> CoreStatistics:
        core = SchedulerCore(CoreConfig())
        core.handle(events.WorkerConnected(info=dataclasses.replace(INFO, epoch=epoch)), now_ns=0)
        statistics = core.statistics()
        worker = statistics.workers[0]
        counters = dataclasses.replace(worker.counters, num_preemptions=num_preemptions)
        return dataclasses.replace(statistics, workers=(dataclasses.replace(worker, counters=counters),))

    for statistics in (seen(1, 2), seen(1, 5), seen(2, 1)):
        books.observer.on_statistics(statistics)
    assert books.show()["vllm:num_preemptions_total"] == {(): 6}


def test_every_finish_reason_has_a_name_in_vllm_s_words():
    assert VLLM_REASONS.keys() == set(FinishReason)
