"""``loraplex top``: two looks become one screen."""

import io
from pathlib import Path

from rich.console import Console

from loraplex_cli.metrics_reading import ProcessSamples, Reading, Sample, read
from loraplex_cli.service import ServiceSettings, frontend_spec, scheduler_spec, worker_spec
from loraplex_cli.top_view import view
from loraplex_client import Cluster, ResidentAdapter, Worker


def worker(*, num_steps: int, num_output_tokens: int) -> Worker:
    return Worker(
        worker_id="w0",
        device="cpu",
        num_pages_total=100,
        num_pages_free=40,
        num_pages_kv=50,
        num_pages_adapter=10,
        num_running_sequences=3,
        adapters=(ResidentAdapter(digest="d", num_pages=10, num_leases=1),),
        num_steps=num_steps,
        num_mixed_steps=0,
        max_adapters_in_step=1,
        num_output_tokens=num_output_tokens,
    )


def reading(time_s: float, state: Worker, *processes: ProcessSamples, silent: tuple[str, ...] = ()) -> Reading:
    cluster = Cluster(workers=(state,), num_queued_requests=4, num_running_requests=2, epoch=7)
    return Reading(time_s=time_s, cluster=cluster, processes=processes, silent=silent)


def samples(process: str, name: str, **values: float) -> ProcessSamples:
    found = (Sample(name=f"loraplex_{key}", labels={}, value=value) for key, value in values.items())
    return ProcessSamples(process=process, name=name, samples=tuple(found))


def shown(before: Reading, after: Reading) -> list[str]:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(view(before, after))
    return captured.get().splitlines()


def test_rates_are_of_the_time_between_the_looks_and_levels_of_the_later():
    before = reading(
        10.0,
        worker(num_steps=100, num_output_tokens=1000),
        samples("worker", "w0", step_seconds_sum=1, step_seconds_count=100, rows_total=100, steps_total=100),
    )
    after = reading(
        12.0,
        worker(num_steps=140, num_output_tokens=1300),
        samples("worker", "w0", step_seconds_sum=3, step_seconds_count=140, rows_total=420, steps_total=140),
        samples("frontend", "f", ttft_seconds_sum=2, ttft_seconds_count=10),
    )
    head, _, row = shown(before, after)
    assert head.startswith("queue 4   running 2   tokens/s 150   workers 1   TTFT 200 ms   ITL -   errors 0   term 7")
    # 2 s in 40 steps are 50 ms each; 320 rows in them are 8 each.
    assert row.split() == ["w0", "(cpu)", "3", "150", "20", "50.0", "8.0", "1", "0", "0", "40", "==========##........"]


def test_a_worker_that_joined_between_the_looks_counts_from_its_start():
    before = reading(0.0, worker(num_steps=500, num_output_tokens=9000))
    head, *_ = shown(before, reading(1.0, worker(num_steps=5, num_output_tokens=60)))
    assert "tokens/s 60 " in head


def test_an_address_that_does_not_answer_is_named_and_the_rest_is_shown():
    state = worker(num_steps=1, num_output_tokens=1)
    cluster = reading(0.0, state).cluster
    after = read(cluster, ["127.0.0.1:1"])
    assert (after.processes, after.silent) == ((), ("127.0.0.1:1",))
    lines = shown(reading(after.time_s - 1, state), after)
    assert "no metrics from 127.0.0.1:1" in lines


def test_every_process_of_a_service_with_metrics_is_told_to_serve_them_on_loopback(tmp_path):
    model = Path("/models/base-7b")
    for has_metrics in (True, False):
        settings = ServiceSettings(data_dir=tmp_path, has_metrics=has_metrics)
        specs = (
            scheduler_spec(settings, model),
            worker_spec(settings, model, "127.0.0.1:1", 0),
            frontend_spec(settings, model, "127.0.0.1:1"),
        )
        for spec in specs:
            flags = [*spec.command, *(text for entry in spec.listen for text in (entry.flag, entry.address))]
            assert ("--metrics-listen" in flags) is has_metrics, spec.name
            if has_metrics:
                assert flags[flags.index("--metrics-listen") + 1] == "127.0.0.1:0"
    assert "base-7b" in scheduler_spec(settings, model).command
