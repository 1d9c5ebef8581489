"""Every kind of adapter from a PEFT folder to tokens, through the real processes, all at once."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from loraplex.v1 import generation_pb2, inference_pb2_grpc
from loraplex_contract.channel import CLIENT_OPTIONS
from tests.e2e.conftest import register, start_all
from tests.e2e.processes import cluster
from tests.e2e.streams import request

NUM_TOKENS = 8
PROMPT = (11, 402, 97, 3001, 5)
TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "biased": {"target_modules": TARGETS, "lora_bias": True},
    "dora": {"target_modules": [*TARGETS, "embed_tokens"], "use_dora": True},
    "own-head": {"target_modules": TARGETS, "modules_to_save": ["lm_head", "embed_tokens"]},
}
REPORTED = {"biased": "lora_bias", "dora": "dora", "own-head": "lora"}


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """Folder, and PEFT's own greedy tokens, by name; the base model is the empty one."""
    folder = tmp_path_factory.mktemp("kinds")
    base = LlamaForCausalLM.from_pretrained(tiny_model).eval()
    folders, answers = {}, {"": _greedy(base)}
    for number, (name, options) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        model = get_peft_model(copy.deepcopy(base), LoraConfig(r=3, **options)).eval()
        for key, tensor in model.named_parameters():
            if "lora_magnitude" in key or "modules_to_save" in key:
                tensor.data *= 1 + 0.5 * torch.randn(tensor.shape)
            elif "lora_" in key:
                tensor.data += 0.3 * torch.randn(tensor.shape)
        folders[name] = folder / name
        model.save_pretrained(folders[name])
        answers[name] = _greedy(model)
    return folders, answers


@pytest.fixture(scope="module")
def address(tiny_model, made, tmp_path_factory):
    folders, _ = made
    with cluster(tmp_path_factory.mktemp("kinds-service"), tiny_model) as running:
        yield start_all(running, folders).address


def _greedy(model) -> list[int]:
    ids = torch.tensor([PROMPT])
    for _ in range(NUM_TOKENS):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(PROMPT) :].tolist()


def test_adapters_of_every_kind_answer_as_peft_while_they_run_together(address, made):
    _, wanted = made
    assert len({tuple(answer) for answer in wanted.values()}) == len(wanted), "each kind has its own answer"
    with (
        grpc.insecure_channel(address, options=CLIENT_OPTIONS) as channel,
        ThreadPoolExecutor(4 * len(wanted)) as pool,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        futures = [(name, pool.submit(stub.Submit, _request(name), timeout=60)) for name in [*wanted] * 4]
        for name, future in futures:
            (sequence,) = future.result().outputs
            assert list(sequence.token_ids) == wanted[name], name or "base model"


def _request(adapter: str) -> generation_pb2.SubmitRequest:
    built = request("", adapter=adapter or None, max_tokens=NUM_TOKENS)
    built.tokens.ids.extend(PROMPT)
    return built


def test_the_registry_says_what_kind_each_adapter_is(address, made):
    folders, _ = made
    reports = {name: register(address, name, folder).version.report for name, folder in folders.items()}
    assert {name: report.kind for name, report in reports.items()} == REPORTED
    assert {module.module for module in reports["own-head"].modules} >= {"lm_head", "embed_tokens"}
    for report in reports.values():
        assert report.num_bytes == sum(module.num_bytes for module in report.modules)
