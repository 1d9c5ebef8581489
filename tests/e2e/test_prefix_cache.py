"""What a client sees of the prefix cache: cached tokens in the usage, the same answers, nothing of other tenants."""

import hashlib
import json

import grpc
import pytest

from loraplex.v1 import inference_pb2, inference_pb2_grpc
from loraplex_contract.channel import CLIENT_OPTIONS
from tests.e2e.conftest import Service, is_serving, register
from tests.e2e.processes import cluster, wait_until
from tests.e2e.streams import request

PROMPT = [10 + (7 * place * place + 3) % 900 for place in range(100)]
SCOPES = ["inference.submit", "models.read", "adapters.read", "adapters.write"]
NUM_FOUND = 96
"""Six pages of 16."""


def keys_of(*tenants: str) -> str:
    keys = [
        {"sha256": hashlib.sha256(f"token-{tenant}".encode()).hexdigest(), "tenant": tenant, "scopes": SCOPES}
        for tenant in tenants
    ]
    return json.dumps({"keys": keys})


def answer(service: Service, tenant: str, adapter: str | None = None) -> tuple[list[int], int]:
    """The tokens, and how many of the prompt's were cached."""
    wanted = request("", adapter=adapter, max_tokens=12)
    wanted.tokens.ids[:] = PROMPT
    with grpc.insecure_channel(service.address, options=CLIENT_OPTIONS) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        metadata = (("authorization", f"Bearer token-{tenant}"),)
        response: inference_pb2.SubmitResponse = stub.Submit(wanted, timeout=60, metadata=metadata)
    sequence = response.outputs[0]
    assert sequence.finish.usage.num_prompt_tokens == len(PROMPT)
    return list(sequence.token_ids), sequence.finish.usage.num_cached_tokens


@pytest.mark.parametrize("shares_base", [False, True])
def test_a_tenant_finds_its_own_prefixes_and_never_another_s(tiny_model, tiny_adapters, tmp_path, shares_base):
    (tmp_path / "keys.json").write_text(keys_of("red", "blue"))
    with cluster(tmp_path / "service", tiny_model) as running:
        running.start_scheduler(*(["--share-base-prefixes"] if shares_base else []))
        running.start_worker("--dtype", "fp32", "--kv-pool-bytes", str(32 << 20))
        flags = ("--auth-keys-file", str(tmp_path / "keys.json"), "--adapter-roots", str(tiny_adapters["alpha"]))
        ports = running.start_frontend(*flags).ports()
        service = Service(ports["listen"], ports["admin_listen"], running)
        wait_until(lambda: is_serving(service.address), 60, "the service serves")
        for tenant in ("red", "blue"):
            register(service.address, "alpha", tiny_adapters["alpha"], token=f"token-{tenant}")
        for adapter in (None, "alpha"):
            tokens, num_cached = answer(service, "red", adapter)
            assert num_cached == 0, "the base model and an adapter share nothing"
            assert answer(service, "red", adapter) == (tokens, NUM_FOUND)
            is_shared = shares_base and adapter is None
            assert answer(service, "blue", adapter) == (tokens, NUM_FOUND if is_shared else 0)
            assert answer(service, "blue", adapter) == (tokens, NUM_FOUND)
