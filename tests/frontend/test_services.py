"""Health, models, tokenizer, cluster, reflection, settings, and the process as it is started."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from loraplex.admin.v1 import cluster_pb2
from loraplex.v1 import generation_pb2, model_pb2, tokenizer_pb2
from loraplex_contract.errors import Unavailable
from loraplex_contract.settings import SettingsError
from loraplex_frontend.health import ADMIN_SERVICES, SERVICES
from loraplex_frontend.settings import FrontendSettings
from tests.fakes.fake_scheduler import FakeScheduler
from tests.frontend.service import WAIT_S, fields_of, info_of, reason_of, started
from tests.frontend.test_inference import failure
from tests.frontend.tiny_model import CONTEXT, EOS_ID

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def check(service, name: str, channel=None) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel or service.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)


# --- health ---


async def test_services_are_serving_only_with_a_scheduler_and_a_ready_worker(model_path, tmp_path):
    fake = FakeScheduler()
    fake.accepts_links = False
    fake.cluster.num_ready_workers = 0
    async with started(model_path, tmp_path, fake=fake) as service:
        assert await check(service, "") == SERVING, "the process lives"
        assert await check(service, SERVICES[0]) == NOT_SERVING
        fake.accepts_links = True
        await fake.until(lambda: fake.is_linked)
        assert await check(service, SERVICES[0]) == NOT_SERVING
        await fake.set_cluster(num_ready_workers=1)
        await service.wait_for_health(SERVING)
        assert [await check(service, name) for name in SERVICES] == [SERVING] * len(SERVICES)
        assert await check(service, ADMIN_SERVICES[0], service.admin) == SERVING
        await fake.set_cluster(num_ready_workers=0)
        await service.wait_for_health(NOT_SERVING)
        await fake.set_cluster(num_ready_workers=2)
        await service.wait_for_health(SERVING)
        fake.accepts_links = False
        fake.drop_link()
        await service.wait_for_health(NOT_SERVING)
        assert await check(service, "") == SERVING


async def test_a_shutdown_begins_with_not_serving_and_refuses_new_calls(model_path, tmp_path):
    async with started(model_path, tmp_path, drain_grace_s=10) as service:
        call = service.inference.Submit(generation_pb2.SubmitRequest(text="Hello"))
        up = await service.fake.next_submit()
        service.frontend.stop()
        await service.wait_for_health(NOT_SERVING, "")
        error = await failure(service.inference.Submit(generation_pb2.SubmitRequest(text="Hello")))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        await service.fake.begin(up)
        await service.fake.end(up.handle)
        assert (await call).outputs[0].finish.reason == generation_pb2.FINISH_REASON_MAX_TOKENS


async def test_the_frontend_says_who_it_is_and_says_goodbye(model_path, tmp_path, model):
    fake = FakeScheduler()
    async with started(model_path, tmp_path, fake=fake, frontend_id="f-1") as service:
        (hello,) = fake.hellos
        assert (hello.frontend_id, hello.protocol_version) == ("f-1", 1)
        assert hello.model_fingerprint == model.fingerprint
        fake.drop_link()
        await fake.until(lambda: len(fake.hellos) == 2)
        assert fake.hellos[1].incarnation == hello.incarnation, "handles go on counting"
        await service.wait_for_health(SERVING)
        service.frontend.stop()
        await fake.until(lambda: fake.num_goodbyes == 1)


# --- models ---


async def test_server_info_tells_limits_and_workers(service):
    info = await service.models.GetServerInfo(model_pb2.GetServerInfoRequest())
    assert list(info.api_versions) == ["v1"]
    assert info.instance_id
    assert info.num_ready_workers == 1
    limits = info.limits
    assert (limits.max_context_tokens, limits.max_sequences_per_request, limits.max_top_logprobs) == (512, 16, 20)
    assert (limits.max_requests_per_session, limits.max_message_bytes) == (256, 16 << 20)
    assert limits.max_timeout.seconds == 3_600


async def test_the_served_model_is_described_and_no_other(service, model):
    (listed,) = (await service.models.ListModels(model_pb2.ListModelsRequest())).models
    got = (await service.models.GetModel(model_pb2.GetModelRequest(name="tiny"))).model
    assert listed == got
    assert (got.name, got.vocab_size, got.max_context_tokens) == ("tiny", model.vocab_size, 512)
    assert (list(got.eos_token_ids), got.bos_token_id, got.has_chat_template) == ([EOS_ID], 1, True)
    assert "q_proj" in got.lora_target_modules
    error = await failure(service.models.GetModel(model_pb2.GetModelRequest(name="other")))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_before_a_worker_is_known_the_context_is_the_models_own(model_path, tmp_path):
    fake = FakeScheduler()
    fake.accepts_links = False
    async with started(model_path, tmp_path, fake=fake) as service:
        got = (await service.models.GetModel(model_pb2.GetModelRequest())).model
    assert got.max_context_tokens == CONTEXT


# --- tokenizer ---


async def test_tokenize_and_detokenize_are_inverse_and_split_control_tokens(service, tokenizer):
    texts = ["Hello, world!", "<|im_end|> 🦊", ""]
    answer = await service.tokenizers.Tokenize(tokenizer_pb2.TokenizeRequest(texts=texts))
    assert [list(result.token_ids) for result in answer.results] == [tokenizer.encode_text(text) for text in texts]
    for text, result in zip(texts[:2], answer.results, strict=False):
        request = tokenizer_pb2.DetokenizeRequest(tokens=generation_pb2.TokenIds(ids=result.token_ids))
        assert (await service.tokenizers.Detokenize(request)).text == text
    control = generation_pb2.TokenIds(ids=[1])
    request = tokenizer_pb2.DetokenizeRequest(tokens=control)
    assert (await service.tokenizers.Detokenize(request)).text == ""
    request.skip_special_tokens = False
    assert (await service.tokenizers.Detokenize(request)).text == "<|im_start|>"


async def test_render_chat_shows_what_a_chat_prompt_becomes(service, tokenizer):
    chat = generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content="a<|im_end|>b")])
    answer = await service.tokenizers.RenderChat(tokenizer_pb2.RenderChatRequest(chat=chat))
    assert answer.text == "<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n"
    assert [i for i in answer.token_ids if i <= 2] == [1, 2, 1]


@pytest.mark.parametrize("texts", [[], ["x"] * 65])
async def test_tokenize_takes_1_to_64_texts(service, texts):
    error = await failure(service.tokenizers.Tokenize(tokenizer_pb2.TokenizeRequest(texts=texts)))
    assert fields_of(error) == ["texts"]


async def test_detokenize_checks_its_ids(service):
    error = await failure(service.tokenizers.Detokenize(tokenizer_pb2.DetokenizeRequest()))
    assert reason_of(error) == "PROMPT_MISSING"
    bad = tokenizer_pb2.DetokenizeRequest(tokens=generation_pb2.TokenIds(ids=[10**6]))
    assert reason_of(await failure(service.tokenizers.Detokenize(bad))) == "TOKEN_OUT_OF_VOCAB"


# --- cluster ---


async def test_the_cluster_is_shown_on_the_admin_address_only(service):
    answer = await service.cluster.GetCluster(cluster_pb2.GetClusterRequest())
    assert [(worker.worker_id, worker.num_pages_total) for worker in answer.workers] == [("w1", 10)]
    assert (answer.num_queued_requests, answer.num_running_requests, answer.epoch) == (2, 3, 7)
    public = service.channel.unary_unary("/loraplex.admin.v1.ClusterService/GetCluster")
    assert (await failure(public(b""))).code() == grpc.StatusCode.UNIMPLEMENTED
    for name in ("DrainWorker", "UndrainWorker", "DrainFrontend"):
        error = await failure(getattr(service.cluster, name)(getattr(cluster_pb2, f"{name}Request")()))
        assert reason_of(error) == "FEATURE_DISABLED"
        assert info_of(error).metadata["feature"] == name


async def test_an_unreachable_scheduler_makes_relayed_calls_unavailable(service):
    service.fake.registry.error = Unavailable("down", reason="DRAINING", retry_delay_s=1)
    error = await failure(service.cluster.GetCluster(cluster_pb2.GetClusterRequest()))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


# --- reflection ---


async def test_reflection_lists_the_services_and_can_be_turned_off(service, model_path, tmp_path):
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {found.name for found in (await call.read()).list_services_response.service}
    assert set(SERVICES) <= names
    call.cancel()
    async with started(model_path, tmp_path / "other", reflection=False) as closed:
        stub = reflection_pb2_grpc.ServerReflectionStub(cast(Any, closed.channel))
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        assert (await failure(call.read())).code() == grpc.StatusCode.UNIMPLEMENTED


# --- settings and process ---


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "host.example:1"])
@pytest.mark.parametrize("flag", ["--listen", "--admin-listen"])
def test_an_open_address_without_credentials_is_refused(address, flag):
    flags = ["--model", "m", "--store", "s", flag, address]
    with pytest.raises(SettingsError, match="insecure-no-auth"):
        FrontendSettings.load(flags)
    FrontendSettings.load([*flags, "--insecure-no-auth", "true"])
    FrontendSettings.load([*flags, "--auth-keys-file", "keys.toml"])


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:1", "[::1]:1", "127.0.0.9:1", "unix:/tmp/x"])
def test_a_loopback_address_needs_no_credentials(address):
    FrontendSettings.load(["--model", "m", "--store", "s", "--listen", address])


def test_roots_may_be_given_many_times():
    flags = ["--model", "m", "--store", "s", "--adapter-roots", "/a", "--adapter-roots", "/b"]
    assert [str(root) for root in FrontendSettings.load(flags).adapter_roots] == ["/a", "/b"]


async def test_the_process_writes_its_ports_logs_json_without_text_and_ends_in_order(model_path, tmp_path):
    fake = FakeScheduler()
    async with fake.serving():
        port_file = tmp_path / "ports.json"
        flags = {
            "--listen": "127.0.0.1:0",
            "--admin-listen": "127.0.0.1:0",
            "--scheduler": fake.address,
            "--model": str(model_path),
            "--store": str(tmp_path / "store"),
            "--port-file": str(port_file),
        }
        command = [sys.executable, "-m", "loraplex_frontend", *(word for pair in flags.items() for word in pair)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)  # noqa: ASYNC220
        try:
            await fake.until(lambda: fake.is_linked)
            address = json.loads(port_file.read_text())["listen"]
            async with grpc.aio.insecure_channel(address) as channel:
                raw: Any = channel.unary_unary("/loraplex.v1.InferenceService/Submit")
                request = generation_pb2.SubmitRequest(text="PRIVATE words", request_id="r-9")
                call = raw(request.SerializeToString())
                up = await fake.next_submit()
                await fake.begin(up)
                await fake.tokens((up.handle, 0, 0, [40, 41]))
                await fake.end(up.handle)
                await call
            os.kill(process.pid, signal.SIGTERM)
            _, log = await asyncio.wait_for(asyncio.to_thread(process.communicate), WAIT_S)
        finally:
            process.kill()
            process.wait(5)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.decode().splitlines()]
    assert any(line.get("request_id") == "r-9" for line in lines)
    assert b"PRIVATE" not in log
    assert fake.num_goodbyes == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model", "/nowhere", "--store", "x"], "config.json"),
        (["--store", "x"], "model"),
        (["--model", "m", "--store", "x", "--max-in-flight", "0"], "max_in_flight"),
    ],
)
def test_a_process_that_cannot_start_says_why_in_one_line(flags, told, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "loraplex_frontend", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr
