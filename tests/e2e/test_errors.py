"""Each row of design section 6: the code and the reason that a client sees, through the real processes."""

import hashlib
import json
import signal
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc, generation_pb2, inference_pb2, inference_pb2_grpc
from loraplex_contract import status
from loraplex_contract.channel import CLIENT_OPTIONS
from loraplex_contract.errors import LoraplexError
from tests.e2e.conftest import Service, is_serving, register, start_all
from tests.e2e.processes import cluster, wait_until
from tests.e2e.streams import request

TIMEOUT_S = 60


def submit(
    address: str, wanted: generation_pb2.SubmitRequest, *, token: str | None = None, timeout_s: float = TIMEOUT_S
):
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        return stub.Submit(wanted, timeout=TIMEOUT_S, metadata=metadata)


def seen_by(caught: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[str, LoraplexError]:
    """The code's name, and the typed error of the trailers."""
    return typed(caught.value)


def typed(error: Any) -> tuple[str, LoraplexError]:
    pb = rpc_status.from_call(error)
    assert pb is not None, error
    assert pb.ByteSize() <= 4096
    return error.code().name, status.error_from_status(pb)


def refused(address: str, wanted: generation_pb2.SubmitRequest, **more) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        submit(address, wanted, **more)
    code, error = seen_by(caught)
    return code, error.reason


def malformed(**fields) -> generation_pb2.SubmitRequest:
    built = request("Hello")
    for path, value in fields.items():
        part, _, field = path.partition("__")
        setattr(getattr(built, part), field, value)
    return built


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (generation_pb2.SubmitRequest(), "PROMPT_MISSING"),
        (malformed(sampling__top_p=1.5), "SAMPLING_INVALID"),
        (malformed(sampling__temperature=float("nan")), "SAMPLING_INVALID"),
        (malformed(sampling__n=17), "SAMPLING_INVALID"),
        (request("word " * 3000), "PROMPT_TOO_LONG"),
        (request("Hello", max_tokens=100_000), "CONTEXT_EXCEEDED"),
    ],
)
def test_a_malformed_request_is_an_invalid_argument(tiny_service, wanted, reason):
    assert refused(tiny_service.address, wanted) == ("INVALID_ARGUMENT", reason)


def test_all_bad_fields_are_named_at_once(tiny_service):
    with pytest.raises(grpc.RpcError) as caught:
        submit(tiny_service.address, malformed(sampling__top_p=7, sampling__min_p=-1, stop__min_tokens=99))
    _, error = seen_by(caught)
    assert {violation.field for violation in error.violations} >= {
        "sampling.top_p",
        "sampling.min_p",
        "stop.min_tokens",
    }


def test_an_unknown_adapter_or_version_is_not_found(tiny_service):
    assert refused(tiny_service.address, request("Hi", adapter="nobody")) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
    wrong_version = request("Hi", adapter="alpha")
    wrong_version.adapter.version = "7"
    assert refused(tiny_service.address, wrong_version)[0] == "NOT_FOUND"


def test_cancelling_an_unknown_request_is_not_found(tiny_service):
    with grpc.insecure_channel(tiny_service.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Cancel(inference_pb2.CancelRequest(request_ids=["never-was"]), timeout=TIMEOUT_S)
    code, error = seen_by(caught)
    assert (code, error.reason) == ("NOT_FOUND", "REQUEST_NOT_FOUND")


def test_a_name_with_other_bytes_already_exists_unless_an_update_is_allowed(tiny_service, tiny_adapters):
    with pytest.raises(grpc.RpcError) as caught:
        register(tiny_service.address, "alpha", tiny_adapters["beta"])
    code, error = seen_by(caught)
    assert (code, error.reason) == ("ALREADY_EXISTS", "ADAPTER_EXISTS")
    first = register(tiny_service.address, "moving", tiny_adapters["alpha"])
    second = register(tiny_service.address, "moving", tiny_adapters["beta"], allow_update=True)
    assert (first.version.number, second.version.number) == (1, 2)
    assert first.version.digest != second.version.digest


@pytest.fixture
def odd_adapter(tiny_model, tiny_adapters):
    """An adapter of a kind that is not supported, below a root that is allowed."""
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    folder = tiny_adapters["gamma"] / "odd"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only")).save_pretrained(folder)
    return folder


def test_an_unsupported_kind_is_a_failed_precondition_that_names_the_field(tiny_service, odd_adapter):
    with pytest.raises(grpc.RpcError) as caught:
        register(tiny_service.address, "odd", odd_adapter)
    code, error = seen_by(caught)
    assert (code, error.reason) == ("FAILED_PRECONDITION", "ADAPTER_FEATURE_UNSUPPORTED")
    assert error.metadata["field"] == "bias"


def test_an_adapter_of_another_base_is_a_failed_precondition(tiny_service, tiny_adapters):
    folder = tiny_adapters["gamma"] / "foreign"
    folder.mkdir(exist_ok=True)
    config = json.loads((tiny_adapters["alpha"] / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 4}))
    (folder / "adapter_model.safetensors").write_bytes(
        (tiny_adapters["alpha"] / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(grpc.RpcError) as caught:
        register(tiny_service.address, "foreign", folder)
    assert seen_by(caught)[0] in {"FAILED_PRECONDITION", "INVALID_ARGUMENT"}


def test_a_folder_outside_the_roots_is_permission_denied(tiny_service, tmp_path):
    with pytest.raises(grpc.RpcError) as caught:
        register(tiny_service.address, "outside", tmp_path)
    code, error = seen_by(caught)
    assert (code, error.reason) == ("PERMISSION_DENIED", "SOURCE_NOT_ALLOWED")
    assert str(tmp_path) not in str(caught.value)


def test_an_adapter_that_drains_takes_no_new_requests_and_is_gone_at_the_end(tiny_service, tiny_adapters):
    register(tiny_service.address, "leaving", tiny_adapters["beta"])
    with grpc.insecure_channel(tiny_service.address, options=CLIENT_OPTIONS) as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        running = inference.SubmitStream(
            inference_pb2.SubmitStreamRequest(request=request("Long", adapter="leaving", max_tokens=1500)), timeout=120
        )
        while next(running).WhichOneof("event") != "delta":
            pass
        adapters = adapter_pb2_grpc.AdapterServiceStub(channel)
        leaving = adapters.UnregisterAdapter.future(adapter_pb2.UnregisterAdapterRequest(name="leaving"), timeout=120)

        def draining() -> tuple[str, str] | None:
            try:
                submit(tiny_service.address, request("Hi", adapter="leaving", max_tokens=1))
            except grpc.RpcError as error:
                code, seen = typed(error)
                return code, seen.reason
            return None

        assert wait_until(draining, 10, "the adapter drains") == ("FAILED_PRECONDITION", "ADAPTER_DRAINING")
        last = [delta.delta for delta in running][-1]
        assert last.finish.reason == generation_pb2.FINISH_REASON_MAX_TOKENS
        assert leaving.result().adapter.state == adapter_pb2.ADAPTER_STATE_DELETED
    assert refused(tiny_service.address, request("Hi", adapter="leaving")) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


def test_a_deadline_that_passes_is_deadline_exceeded(tiny_service):
    late = request("Hello", max_tokens=1900)
    late.scheduling.timeout.FromMilliseconds(200)
    assert refused(tiny_service.address, late) == ("DEADLINE_EXCEEDED", "DEADLINE")


def test_a_running_request_id_is_already_taken(tiny_service):
    with grpc.insecure_channel(tiny_service.address, options=CLIENT_OPTIONS) as channel:
        long = request("Hello", max_tokens=1900, request_id="the-one")
        running = inference_pb2_grpc.InferenceServiceStub(channel).SubmitStream(
            inference_pb2.SubmitStreamRequest(request=long), timeout=60
        )
        next(running)
        again = request("Hello", request_id="the-one")
        assert refused(tiny_service.address, again) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
        running.cancel()


def key_file(path, **tenants: list[str]):
    keys = [
        {"sha256": hashlib.sha256(f"token-{tenant}".encode()).hexdigest(), "tenant": tenant, "scopes": scopes}
        for tenant, scopes in tenants.items()
    ]
    path.write_text(json.dumps({"keys": keys}))
    return path


SCOPES = ["inference.submit", "models.read", "adapters.read", "adapters.write"]


def test_credentials_scopes_and_tenants(tiny_model, tiny_adapters, tmp_path):
    """One service with keys: nobody, a stranger, a reader, and two tenants that must not see each other."""
    keys = key_file(tmp_path / "keys.json", acme=SCOPES, other=SCOPES, reader=["models.read"])
    with cluster(tmp_path / "auth", tiny_model) as running:
        service = start_all(running, {}, "--auth-keys-file", str(keys), "--adapter-roots", str(tiny_adapters["alpha"]))
        hello = request("Hello", max_tokens=2)
        assert refused(service.address, hello)[0] == "UNAUTHENTICATED"
        assert refused(service.address, hello, token="wrong")[0] == "UNAUTHENTICATED"
        assert refused(service.address, hello, token="token-reader")[0] == "PERMISSION_DENIED"
        register(service.address, "secret", tiny_adapters["alpha"], token="token-acme")
        answer = submit(service.address, request("Hello", adapter="secret", max_tokens=2), token="token-acme")
        assert answer.prompt.adapters[0].name == "secret"
        foreign = request("Hello", adapter="secret")
        unknown = request("Hello", adapter="nothing")
        assert refused(service.address, foreign, token="token-other") == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
        assert refused(service.address, unknown, token="token-other") == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


def limited_service(running, adapters, *scheduler_flags: str) -> Service:
    """Room for one running sequence, so that the next request waits."""
    running.start_scheduler(*scheduler_flags)
    running.start_worker("--dtype", "fp32", "--kv-pool-bytes", str(32 << 20), "--max-sequences", "1")
    ports = running.start_frontend("--adapter-roots", str(next(iter(adapters.values())))).ports()
    wait_until(lambda: is_serving(ports["listen"]), 60, "the limited service serves")
    return Service(ports["listen"], ports["admin_listen"], running)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(("--max-queued-requests", "1"), "QUEUE_FULL"), (("--max-inflight-per-tenant", "2"), "TENANT_QUOTA")],
)
def test_over_a_limit_is_resource_exhausted_with_a_retry_delay(tiny_model, tiny_adapters, tmp_path, flags, reason):
    with cluster(tmp_path / "limited", tiny_model) as running:
        service = limited_service(running, tiny_adapters, *flags)
        with grpc.insecure_channel(service.address, options=CLIENT_OPTIONS) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)

            def start():
                call = stub.SubmitStream(
                    inference_pb2.SubmitStreamRequest(request=request("Long", max_tokens=1900)), timeout=60
                )
                assert next(call).WhichOneof("event") == "accepted"
                return call

            first = start()
            while next(first).WhichOneof("event") != "delta":
                pass
            second = start()
            with pytest.raises(grpc.RpcError) as caught:
                submit(service.address, request("Short"))
            code, error = seen_by(caught)
            assert (code, error.reason) == ("RESOURCE_EXHAUSTED", reason)
            assert error.retry_delay_s is not None
            first.cancel()
            second.cancel()


def test_without_workers_or_scheduler_the_service_is_unavailable(tiny_model, tiny_adapters, tmp_path):
    with cluster(tmp_path / "empty", tiny_model) as running:
        scheduler = running.start_scheduler("--no-worker-grace-s", "0.5")
        ports = running.start_frontend("--scheduler-grace-s", "0.2").ports()
        with pytest.raises(grpc.RpcError) as caught:
            submit(ports["listen"], request("Hello"))
        code, error = seen_by(caught)
        assert (code, error.reason) == ("UNAVAILABLE", "NO_WORKERS")
        assert error.retry_delay_s is not None
        assert not is_serving(ports["listen"])
        scheduler.send(signal.SIGKILL)
        scheduler.popen.wait(5)
        with pytest.raises(grpc.RpcError) as caught:
            submit(ports["listen"], request("Hello"))
        code, error = seen_by(caught)
        assert code == "UNAVAILABLE"
        assert error.reason in {"SCHEDULER_AWAY", "SCHEDULER_LOST"}
        assert error.retry_delay_s is not None


def test_a_damaged_version_in_the_store_is_data_loss_for_those_who_ask_for_it(tiny_model, tiny_adapters, tmp_path):
    with cluster(tmp_path / "damaged", tiny_model) as running:
        service = start_all(running, tiny_adapters)
        digest = register(service.address, "alpha", tiny_adapters["alpha"]).version.digest
        path = running.store / digest[:2] / digest / "adapter.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
        assert refused(service.address, request("Hi", adapter="alpha")) == ("DATA_LOSS", "ARTIFACT_CORRUPT")
        answer = submit(service.address, request("Hi", adapter="beta", max_tokens=3))
        assert len(answer.outputs[0].token_ids) == 3


def test_what_this_release_lacks_says_so(tiny_service):
    with grpc.insecure_channel(tiny_service.address) as channel, pytest.raises(grpc.RpcError) as caught:
        adapter_pb2_grpc.AdapterServiceStub(channel).PinAdapter(adapter_pb2.PinAdapterRequest(name="alpha"), timeout=9)
    code, error = seen_by(caught)
    assert (code, error.reason) == ("UNIMPLEMENTED", "FEATURE_DISABLED")
