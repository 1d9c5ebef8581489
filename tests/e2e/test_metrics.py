"""What /metrics says is what clients saw: one known load through the real processes, then the books are compared."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.v1 import generation_pb2, inference_pb2, inference_pb2_grpc
from loraplex_contract.channel import CLIENT_OPTIONS
from loraplex_frontend.metrics import SPECS as FRONTEND_SPECS
from loraplex_scheduler.metrics import OWN_SPECS, VLLM_SPECS
from loraplex_worker.metrics import SPECS as WORKER_SPECS
from tests.e2e.conftest import is_serving, register
from tests.e2e.conftest import run as run_command
from tests.e2e.processes import Cluster, cluster, wait_until
from tests.e2e.scrape import Scrape
from tests.e2e.streams import Session, Stream, channel, request, stream_once, wait_for_idle

MARKER = "xylophonequartz"
"""In every prompt; must be in no log and no metric."""
METRICS = ("--metrics-listen", "127.0.0.1:0")
FINISHED = (("alpha", 9), ("alpha", 14), ("beta", 11), ("alpha+gamma", 5), (None, 8), (None, 3))
"""Adapter and output tokens of the requests in calls of their own that end well."""
IN_SESSION = (("gamma", 7), ("beta", 6), (None, 4))
NUM_SEQUENCES = 2
TOKENS_OF_EACH = 6
"""Of one more request, with several sequences."""


@dataclasses.dataclass
class Seen:
    """What the clients of the load saw."""

    streams: list[tuple[str | None, Stream]] = dataclasses.field(default_factory=list)
    num_prompt_tokens: int = 0
    """Of the requests in ``streams``, each once."""
    errors: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    request_ids: list[str] = dataclasses.field(default_factory=list)
    cancelled_after: int = 0

    @property
    def num_output_tokens(self) -> int:
        return sum(len(stream.token_ids) for _, stream in self.streams)


@dataclasses.dataclass
class Run:
    cluster: Cluster
    admin: str
    seen: Seen
    scheduler: Scrape
    frontend: Scrape
    worker: Scrape


def ask(number: int, adapter: str | None, max_tokens: int, **fields: Any) -> generation_pb2.SubmitRequest:
    """Names joined by + are composed."""
    name = adapter if adapter is None or "+" not in adapter else None
    built = request(
        f"{MARKER} {number}", adapter=name, max_tokens=max_tokens, request_id=f"metrics-test-{number}", **fields
    )
    if name != adapter and adapter is not None:
        for part in adapter.split("+"):
            built.adapter.composition.add(name=part, weight=0.5)
    return built


async def make_traffic(address: str) -> Seen:
    seen = Seen()
    async with channel(address) as open_channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(open_channel)
        await finish_some(stub, seen)
        await finish_in_session(open_channel, seen)
        await finish_several_sequences(stub, seen)
        await be_refused(stub, seen)
        await cancel_one(stub, seen)
    return seen


async def finish_some(stub: Any, seen: Seen) -> None:
    async with asyncio.TaskGroup() as tasks:
        started = [
            (adapter, tasks.create_task(stream_once(stub, ask(number, adapter, max_tokens))))
            for number, (adapter, max_tokens) in enumerate(FINISHED)
        ]
    for number, (adapter, task) in enumerate(started):
        note(seen, number, adapter, task.result())


async def finish_in_session(open_channel: grpc.aio.Channel, seen: Seen) -> None:
    session = Session(open_channel)
    await session.start()
    for handle, (adapter, max_tokens) in enumerate(IN_SESSION, start=1):
        await session.submit(handle, ask(100 + handle, adapter, max_tokens))
    await session.read_all()
    for handle, (adapter, _) in enumerate(IN_SESSION, start=1):
        note(seen, 100 + handle, adapter, session.streams[handle])


def note(seen: Seen, number: int, adapter: str | None, stream: Stream) -> None:
    assert stream.finish is not None
    seen.streams.append((adapter, stream))
    seen.num_prompt_tokens += stream.finish.usage.num_prompt_tokens
    seen.request_ids.append(f"metrics-test-{number}")


async def finish_several_sequences(stub: Any, seen: Seen) -> None:
    wanted = ask(200, "alpha", TOKENS_OF_EACH)
    wanted.sampling.n = NUM_SEQUENCES
    wanted.sampling.temperature = 1
    answer = await stub.Submit(wanted, timeout=60)
    for output in answer.outputs:
        assert len(output.token_ids) == TOKENS_OF_EACH
        seen.streams.append(("alpha", Stream(token_ids=list(output.token_ids), finish=output.finish)))
    seen.num_prompt_tokens += answer.outputs[0].finish.usage.num_prompt_tokens
    seen.request_ids.append("metrics-test-200")


async def be_refused(stub: Any, seen: Seen) -> None:
    bad = ask(300, None, 4)
    bad.sampling.top_p = 7
    for wanted in (bad, bad, ask(301, "unheard-of", 4), ask(302, None, 100_000)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Submit(wanted, timeout=60)
        seen.errors.append((caught.value.code().name, reason_of(caught.value)))


def reason_of(error: grpc.aio.AioRpcError) -> str:
    from grpc_status import rpc_status

    from loraplex_contract import status

    rich = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stubs know only the blocking call
    assert rich is not None
    return status.error_from_status(rich).reason


async def cancel_one(stub: Any, seen: Seen) -> None:
    call = stub.SubmitStream(inference_pb2.SubmitStreamRequest(request=ask(400, "beta", 1500)), timeout=60)
    async for response in call:
        if response.WhichOneof("event") == "delta":
            seen.cancelled_after += response.delta.num_tokens
            if seen.cancelled_after >= 5:
                break
    call.cancel()


@pytest.fixture(scope="module")
def run(tiny_model, tiny_adapters, tmp_path_factory) -> Iterator[Run]:
    with cluster(tmp_path_factory.mktemp("metrics"), tiny_model) as running:
        scheduler = running.start_scheduler(*METRICS, "--model-name", "tiny")
        port_file = running.folder / "worker.port.json"
        worker = running.start_worker("--dtype", "fp32", "--port-file", str(port_file), *METRICS)
        roots = [flag for folder in tiny_adapters.values() for flag in ("--adapter-roots", str(folder))]
        frontend = running.start_frontend(*roots, *METRICS).ports()
        wait_until(lambda: is_serving(frontend["listen"]), 60, "the service serves")
        for name, folder in tiny_adapters.items():
            register(frontend["listen"], name, folder)
        with pytest.raises(grpc.RpcError):
            register(frontend["listen"], "not-there", Path("/nowhere"))
        seen = asyncio.run(make_traffic(frontend["listen"]))
        asyncio.run(wait_for_idle(frontend["admin_listen"]))
        at_rest = wait_until(lambda: idle(worker.ports()["metrics"]), 10, "the worker has heard of the last end")
        yield Run(
            cluster=running,
            admin=frontend["admin_listen"],
            seen=seen,
            scheduler=wait_until(lambda: caught_up(scheduler.ports()["metrics"], at_rest), 10, "every report came"),
            frontend=wait_until(lambda: over(frontend["metrics"]), 10, "every request is over"),
            worker=at_rest,
        )


def idle(address: str) -> Scrape | None:
    scrape = Scrape(address)
    return scrape if scrape.total("loraplex_engine_sequences") == 0 else None


def caught_up(address: str, worker: Scrape) -> Scrape | None:
    scrape = Scrape(address)
    return scrape if scrape.total("loraplex_scheduled_steps_total") >= worker.total("loraplex_steps_total") else None


def over(address: str) -> Scrape | None:
    scrape = Scrape(address)
    received = scrape.total("loraplex_requests_received_total")
    return scrape if received == scrape.total("loraplex_requests_total") else None


def test_every_request_is_counted_once_with_the_code_and_the_reason_that_its_client_got(run):
    expected: dict[tuple[str, str], float] = {
        ("OK", "OK"): len(FINISHED) + len(IN_SESSION) + 1,
        ("CANCELLED", "CLIENT_GONE"): 1,
    }
    for error in run.seen.errors:
        expected[error] = expected.get(error, 0) + 1
    assert run.frontend.by("loraplex_requests_total", "code", "reason") == expected
    assert set(run.seen.errors) == {
        ("INVALID_ARGUMENT", "SAMPLING_INVALID"),
        ("NOT_FOUND", "ADAPTER_NOT_FOUND"),
        ("INVALID_ARGUMENT", "CONTEXT_EXCEEDED"),
    }


def test_requests_and_tokens_are_counted_under_their_adapters(run):
    frontend = run.frontend
    expected: dict[tuple[str, str], int] = {}
    for adapter, stream in run.seen.streams:
        label = ("default", adapter or "(base)")
        expected[label] = expected.get(label, 0) + len(stream.token_ids)
    output = {
        key[:2]: n
        for key, n in frontend.by("loraplex_tokens_total", "tenant", "adapter", "kind").items()
        if key[2] == "output"
    }
    # The cancelled one ran on until the frontend heard of it.
    assert output.pop(("default", "beta")) >= expected.pop(("default", "beta")) + run.seen.cancelled_after
    assert output == expected
    by_adapter = frontend.by("loraplex_requests_total", "adapter")
    assert by_adapter["alpha",] == 3
    assert by_adapter["alpha+gamma",] == 1
    # A name that a client made up is no label.
    assert by_adapter["(none)",] == len(run.seen.errors)
    assert "unheard-of" not in frontend.text + run.scheduler.text


def test_the_scheduler_s_tokens_are_those_of_the_clients_and_of_the_engine(run):
    num_output = run.scheduler.total("vllm:generation_tokens_total")
    # What the worker gave after the cancellation reached the scheduler, or was dropped there.
    assert num_output >= run.seen.num_output_tokens + run.seen.cancelled_after
    assert num_output == run.scheduler.total("vllm:request_generation_tokens_sum")
    assert run.worker.total("loraplex_engine_tokens_total") >= num_output
    alone = run.frontend.total("loraplex_tokens_total", kind="output")
    assert run.seen.num_output_tokens + run.seen.cancelled_after <= alone <= num_output


def test_prompt_tokens_are_counted_for_each_sequence(run):
    prompts = run.scheduler.total("vllm:request_prompt_tokens_sum")
    assert run.scheduler.total("vllm:prompt_tokens_total") == prompts
    of_clients = run.frontend.total("loraplex_tokens_total", kind="prompt")
    one = run.seen.streams[-1][1].finish.usage.num_prompt_tokens
    # Once for each request at the edge, once for each sequence in the engine.
    assert prompts == of_clients + (NUM_SEQUENCES - 1) * one
    computed = run.worker.total("loraplex_rows_total", kind="prefill")
    found = run.scheduler.total("vllm:prefix_cache_hits_total")
    assert computed + found >= prompts
    assert run.scheduler.total("vllm:prefix_cache_queries_total") >= found
    assert found == run.worker.total("loraplex_prefix_cache_tokens_total")


def test_sequences_end_for_the_reasons_that_clients_saw(run):
    num_ended = len(run.seen.streams)
    by_reason = run.scheduler.by("vllm:request_success_total", "finished_reason")
    assert by_reason == {("length",): num_ended, ("abort",): 1}
    assert run.frontend.by("loraplex_sequences_total", "finish_reason") == {("MAX_TOKENS",): num_ended}
    assert run.scheduler.by("loraplex_scheduler_errors_total", "stage", "reason") == {
        ("rejected", "ADAPTER_NOT_FOUND"): 1
    }


def test_every_token_but_the_first_of_its_sequence_has_one_latency(run):
    num_sequences = len(run.seen.streams) + 1
    scheduler = run.scheduler
    assert scheduler.total("vllm:time_to_first_token_seconds_count") == num_sequences
    gaps = scheduler.total("vllm:generation_tokens_total") - num_sequences
    assert scheduler.total("vllm:inter_token_latency_seconds_count") == gaps
    at_edge = run.frontend.total("loraplex_tokens_total", kind="output")
    assert run.frontend.total("loraplex_itl_seconds_count") == at_edge - num_sequences
    # Of requests, not of sequences.
    num_requests = len(FINISHED) + len(IN_SESSION) + 2
    assert run.frontend.total("loraplex_ttft_seconds_count") == num_requests
    assert run.frontend.total("loraplex_e2e_seconds_count") == num_requests
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert scheduler.total(f"vllm:{name}_seconds_count") == num_sequences, name
    whole = scheduler.total("vllm:e2e_request_latency_seconds_sum")
    parts = ("request_queue_time", "request_prefill_time", "request_decode_time")
    assert sum(scheduler.total(f"vllm:{part}_seconds_sum") for part in parts) == pytest.approx(whole)


def test_first_requests_on_an_adapter_are_cold_and_later_ones_hot(run):
    states = run.frontend.by("loraplex_ttft_seconds_count", "adapter_state")
    assert states["base",] == 3
    assert states["cold",] >= 1
    # The request with two sequences came when its adapter was there.
    assert states["hot",] >= 1


def test_adapter_loads_agree_from_the_order_to_the_store(run):
    scheduler, worker = run.scheduler, run.worker
    assert scheduler.total("loraplex_adapter_load_orders_total") == 3
    assert worker.total("loraplex_adapter_loads_total", result="ok") == 3
    assert worker.total("loraplex_adapter_load_seconds_count") == 3
    assert worker.by("loraplex_adapter_hit_total", "tier") == {("store",): 3}
    assert worker.by("loraplex_worker_adapters", "tier") == {("device",): 3, ("host",): 3}
    assert scheduler.by("loraplex_adapters_on_worker", "tier") == {("device",): 3}
    assert scheduler.by("loraplex_adapters", "state") == {("ready",): 3}
    lookups = scheduler.by("loraplex_adapter_lookups_total", "found")
    num_accepted = len(FINISHED) + len(IN_SESSION) + 2
    assert (lookups["base",], sum(lookups.values())) == (3, num_accepted)
    assert scheduler.total("vllm:request_params_n_sum") == num_accepted + NUM_SEQUENCES - 1


def test_steps_agree_between_worker_and_scheduler(run):
    steps = run.worker.total("loraplex_steps_total")
    assert steps > 0
    assert run.scheduler.total("loraplex_scheduled_steps_total") == steps
    assert run.scheduler.total("vllm:iteration_tokens_total_count") == steps
    assert run.worker.total("loraplex_step_seconds_count") == steps
    assert run.worker.total("loraplex_batch_adapters_count") == steps
    assert run.scheduler.total("vllm:iteration_tokens_total_sum") == run.worker.total("loraplex_rows_total")
    parts = run.worker.by("loraplex_step_thread_seconds_total", "part")
    assert parts["step",] >= run.worker.total("loraplex_step_seconds_sum")


def test_an_idle_service_shows_no_load_and_whole_pools(run):
    scheduler = run.scheduler
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert scheduler.total(f"vllm:{name}") == 0, name
    assert scheduler.total("loraplex_leases") == 0
    assert scheduler.total("loraplex_running_sequences") == run.worker.total("loraplex_engine_sequences") == 0
    pages = scheduler.by("loraplex_pages", "kind")
    (config,) = (s.labels for s in scheduler.samples if s.name == "vllm:cache_config_info")
    assert sum(pages.values()) == float(config["num_gpu_blocks"]) == run.worker.total("loraplex_engine_pages")
    assert scheduler.by("loraplex_links", "peer") == {("frontend",): 1, ("worker",): 1}
    assert run.worker.total("loraplex_link_up") == run.frontend.total("loraplex_link_up") == 1
    assert 0 < run.worker.total("loraplex_lease_left_seconds") <= 5


def test_running_adapters_are_listed_as_routers_read_them(run):
    """While a request runs, and no longer."""

    def listed() -> dict[str, str]:
        (labels,) = (s.labels for s in Scrape(address).samples if s.name == "vllm:lora_requests_info")
        return labels

    address = run.cluster.processes[0].ports()["metrics"]
    public = next(process for process in run.cluster.processes if process.name == "frontend").ports()["listen"]
    with grpc.insecure_channel(public, options=CLIENT_OPTIONS) as open_channel:
        stub = inference_pb2_grpc.InferenceServiceStub(open_channel)
        call = stub.SubmitStream(inference_pb2.SubmitStreamRequest(request=ask(500, "gamma", 1900)), timeout=60)
        for response in call:
            if response.WhichOneof("event") == "delta":
                break
        during = listed()
        call.cancel()
    assert (during["running_lora_adapters"], during["waiting_lora_adapters"]) == ("gamma", "")
    assert (during["model_name"], during["engine"]) == ("tiny", "0")
    asyncio.run(wait_for_idle(run.admin))
    assert wait_until(lambda: listed()["running_lora_adapters"] == "", 10, "nothing is listed")


def test_rpcs_are_counted_with_the_reasons_of_their_errors(run):
    errors = run.frontend.by("loraplex_rpc_errors_total", "method", "reason")
    assert errors["loraplex.v1.AdapterService/RegisterAdapter", "SOURCE_NOT_ALLOWED"] == 1
    assert errors["loraplex.v1.InferenceService/Submit", "SAMPLING_INVALID"] == 2
    rpcs = run.frontend.by("loraplex_rpcs_total", "method", "code")
    assert rpcs["loraplex.v1.AdapterService/RegisterAdapter", "OK"] == 3
    assert rpcs["loraplex.v1.InferenceService/Session", "OK"] == 1


@pytest.mark.parametrize(
    ("process", "specs"),
    [("scheduler", (*VLLM_SPECS, *OWN_SPECS)), ("frontend", FRONTEND_SPECS), ("worker", WORKER_SPECS)],
)
def test_each_process_shows_every_metric_that_it_declares(run, process, specs):
    shown = set()
    for line in getattr(run, process).text.splitlines():
        if line.startswith("# TYPE "):
            shown.add(line.split()[2])
    assert {spec.name for spec in specs} - shown == set()


def test_no_prompt_and_no_request_id_is_in_any_metric(run):
    text = run.scheduler.text + run.frontend.text + run.worker.text
    assert MARKER not in text
    assert "metrics-test-" not in text


def logs(run: Run) -> dict[str, list[dict[str, Any]]]:
    return {process.name: list(parsed(process.log())) for process in run.cluster.processes}


def parsed(log: str) -> Iterator[dict[str, Any]]:
    for line in log.splitlines():
        # The C core of gRPC writes a few lines of its own.
        if not line.startswith(("I1", "W1", "E1", "WARNING: All log messages", "I0", "W0", "E0")):
            yield json.loads(line)


def test_every_log_is_json_lines_with_time_and_level_and_without_any_prompt(run):
    for name, entries in logs(run).items():
        assert entries, name
        for entry in entries:
            assert {"event", "level", "timestamp", "logger"} <= entry.keys(), (name, entry)
    for process in run.cluster.processes:
        assert MARKER not in process.log(), process.name


def test_each_request_that_ran_has_one_line_with_its_id_in_the_frontend_s_log(run):
    ended = [entry for entry in logs(run)["frontend"] if entry["event"] == "request ended"]
    ids = [entry["request_id"] for entry in ended]
    for request_id in run.seen.request_ids:
        assert ids.count(request_id) == 1, request_id
    by_id = {entry["request_id"]: entry for entry in ended}
    assert by_id["metrics-test-1"]["num_output_tokens"] == FINISHED[1][1]
    assert by_id["metrics-test-301"]["error"] == "ADAPTER_NOT_FOUND"


def test_a_request_that_was_refused_at_the_edge_has_a_line_with_its_id_and_the_reason(run):
    refused = [entry for entry in logs(run)["frontend"] if entry["event"] == "request refused"]
    found = [(entry["request_id"], entry["error"]) for entry in refused]
    assert found.count(("metrics-test-300", "SAMPLING_INVALID")) == 2
    assert found.count(("metrics-test-302", "CONTEXT_EXCEEDED")) == 1


def test_top_shows_the_same_figures_once(run):
    ports = [process.ports()["metrics"] for process in run.cluster.processes]
    flags = [flag for address in ports for flag in ("--metrics", address)]
    worker = next(sample.labels["worker"] for sample in run.scheduler.samples if sample.name == "loraplex_pages")
    done = run_command(
        sys.executable, "-m", "loraplex_cli.main", "top", "--once", "--admin", run.admin, *flags, COLUMNS="200"
    )
    assert done.returncode == 0, done.stderr
    head, _, row = done.stdout.splitlines()
    assert head.startswith("queue 0   running 0   tokens/s 0   workers 1   TTFT ")
    ended_badly = Scrape(ports[2])
    num_errors = ended_badly.total("loraplex_requests_total") - ended_badly.total("loraplex_requests_total", code="OK")
    assert f"errors {num_errors:.0f} " in head
    cells = row.split()
    assert cells[:5] == [worker, "(cpu)", "0", "0", "0"]
    # Three adapters on the device, as many in the host tier, none on its way.
    assert cells[7:10] == ["3", "3", "0"]
    mean_ms = 1000 * run.worker.total("loraplex_step_seconds_sum") / run.worker.total("loraplex_steps_total")
    assert 0 < float(cells[5]) < 10 * mean_ms


def test_top_without_metrics_shows_what_the_cluster_tells(run):
    done = run_command(sys.executable, "-m", "loraplex_cli.main", "top", "--once", "--admin", run.admin, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "TTFT -" in done.stdout
    assert "loraplex up --metrics" in done.stdout


def test_top_without_a_service_says_what_to_do(tmp_path):
    done = run_command(sys.executable, "-m", "loraplex_cli.main", "top", "--once", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert "loraplex up" in done.stderr


def test_a_lost_worker_is_counted_with_its_cause(tiny_model, tmp_path):
    with cluster(tmp_path / "lost", tiny_model) as running:
        address = running.start_scheduler(*METRICS).ports()["metrics"]
        first = running.start_worker("--dtype", "fp32", name="first")
        second = running.start_worker("--dtype", "fp32", name="second")
        wait_until(lambda: Scrape(address).total("loraplex_workers") == 2, 60, "both joined")
        first.stop()
        second.popen.kill()

        def losses() -> dict[tuple[str, ...], float]:
            return Scrape(address).by("loraplex_worker_losses_total", "cause")

        wait_until(lambda: len(losses()) == 2, 30, "both are gone")
        assert losses() == {("LEFT",): 1, ("STREAM_ENDED",): 1}
        assert Scrape(address).total("loraplex_workers") == 0


def test_without_the_setting_nothing_listens_and_the_port_file_has_no_metrics(tiny_model, tmp_path):
    with cluster(tmp_path / "off", tiny_model) as running:
        assert "metrics" not in running.start_scheduler().ports()
