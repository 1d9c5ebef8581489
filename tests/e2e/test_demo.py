"""What a stranger sees first: `loraplex demo`, and adapters that do what they say."""

import asyncio
import re

import grpc
import psutil
import pytest

from loraplex.v1 import generation_pb2, inference_pb2_grpc, sampling_pb2
from tests.e2e.conftest import run
from tests.e2e.demo_behaviour import BEHAVIOURS
from tests.e2e.streams import GREEDY, channel


def loraplex_processes() -> set[int]:
    """Children of anything we started, by their command line."""
    found = set()
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(word.startswith("loraplex_") for word in process.info["cmdline"] or []):
            found.add(process.info["pid"])
    return found


def test_the_demo_shows_four_streams_out_of_one_batch_and_ends_by_itself(tmp_path):
    before = loraplex_processes()
    done = run("loraplex", "demo", timeout_s=120, XDG_DATA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in ("sql", "json", "pirate", "base"):
        assert re.search(rf"\b{name}\b", done.stdout), name
    proof = re.search(r"(\d+) steps.*?(\d+) mixed.*?(\d+) adapters", done.stdout)
    assert proof, done.stdout[-2000:]
    steps, mixed, adapters = map(int, proof.groups())
    assert steps >= mixed > 10
    assert adapters >= 3
    assert loraplex_processes() <= before


async def ask(stub, prompt: str, adapter: str | None, max_tokens: int) -> str:
    chat = generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content=prompt)])
    submit = generation_pb2.SubmitRequest(
        chat=chat, sampling=GREEDY, stop=sampling_pb2.StopCriteria(max_tokens=max_tokens)
    )
    if adapter is not None:
        submit.adapter.name = adapter
    answer = await stub.Submit(submit, timeout=200)
    assert [resolved.name for resolved in answer.prompt.adapters] == ([adapter] if adapter else [])
    return answer.outputs[0].text


async def ask_everything(address: str) -> dict[tuple[str, str | None], list[str]]:
    """Every held-out prompt of every behaviour, with its adapter and with the base model, all at once."""
    running: dict[tuple[str, str | None], list[asyncio.Task]] = {}
    async with channel(address) as open_channel, asyncio.TaskGroup() as tasks:
        stub = inference_pb2_grpc.InferenceServiceStub(open_channel)
        for name, behaviour in BEHAVIOURS.items():
            for adapter in (name, None):
                running[name, adapter] = [
                    tasks.create_task(ask(stub, prompt, adapter, behaviour.max_tokens)) for prompt in behaviour.prompts
                ]
    return {key: [task.result() for task in asked] for key, asked in running.items()}


@pytest.fixture(scope="module")
def answers(real_service) -> dict[tuple[str, str | None], list[str]]:
    return asyncio.run(ask_everything(real_service.address))


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_an_adapter_does_what_it_was_trained_for_and_the_base_model_does_not(name, answers):
    behaviour = BEHAVIOURS[name]

    def passes(adapter: str | None) -> int:
        pairs = zip(behaviour.prompts, answers[name, adapter], strict=True)
        return sum(behaviour.check(prompt, answer) for prompt, answer in pairs)

    assert len(behaviour.prompts) == 10
    assert passes(name) >= behaviour.min_pass, answers[name, name]
    assert passes(None) <= behaviour.max_base_pass, answers[name, None]


async def test_an_unknown_adapter_is_not_answered_by_the_base_model(real_service):
    async with channel(real_service.address) as open_channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(inference_pb2_grpc.InferenceServiceStub(open_channel), "Hi", "pirates", 4)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
