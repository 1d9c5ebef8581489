"""Who may call what, for every method that there is."""

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loraplex.admin.v1 import cluster_pb2
from loraplex.v1 import adapter_pb2, inference_pb2, model_pb2, tokenizer_pb2
from loraplex_frontend.auth import SCOPES
from loraplex_frontend.auth_keys import AuthKeys, AuthKeysError
from loraplex_frontend.principal import ALL_SCOPES
from tests.fakes.fake_scheduler import echo
from tests.frontend.service import Service, Session, reason_of, started
from tests.frontend.test_inference import failure, prompt

TOKENS = {"all": "s3cret-all", "reader": "s3cret-reader", "other": "s3cret-other"}
DESCRIPTORS = (inference_pb2, adapter_pb2, model_pb2, tokenizer_pb2, cluster_pb2)


def entry(token: str, tenant: str, *scopes: str) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(token.encode()).hexdigest(), "tenant": tenant, "scopes": list(scopes)}


KEYS = {
    "keys": [
        entry(TOKENS["all"], "acme", *sorted(ALL_SCOPES)),
        entry(TOKENS["reader"], "acme", "adapters.read"),
        entry(TOKENS["other"], "beta", "inference.submit", "adapters.read"),
    ]
}


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
async def service(model_path, tmp_path) -> AsyncIterator[Service]:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(KEYS))
    async with started(model_path, tmp_path, script=echo(), auth_keys_file=path) as running:
        yield running


def test_every_method_of_every_service_has_a_scope_and_no_other_has():
    methods = {
        f"{service.full_name}/{method.name}"
        for module in DESCRIPTORS
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(SCOPES) == methods
    assert set(SCOPES.values()) == ALL_SCOPES


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "CREDENTIALS_MISSING"),
        ((("authorization", "Basic abc"),), "CREDENTIALS_MISSING"),
        ((*bearer(TOKENS["all"]), *bearer(TOKENS["all"])), "CREDENTIALS_MISSING"),
        (bearer("wrong"), "CREDENTIALS_INVALID"),
        (bearer(""), "CREDENTIALS_INVALID"),
        (bearer(hashlib.sha256(TOKENS["all"].encode()).hexdigest()), "CREDENTIALS_INVALID"),
    ],
)
async def test_missing_and_bad_credentials_are_unauthenticated(service, metadata, reason):
    error = await failure(service.inference.Submit(prompt(), metadata=metadata))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert service.fake.submits == []


@pytest.mark.parametrize("method", SCOPES)
async def test_each_method_needs_a_credential_and_its_scope(service, method):
    """Raw bytes, so that all four shapes of calls are tried in the same way."""
    channel = service.admin if "admin" in method else service.channel
    stub = channel.stream_stream(f"/{method}")
    unauthenticated = await failure(stub(iter([b""])).read())
    assert unauthenticated.code() == grpc.StatusCode.UNAUTHENTICATED
    if SCOPES[method] != "adapters.read":
        denied = await failure(stub(iter([b""]), metadata=bearer(TOKENS["reader"])).read())
        assert (denied.code(), reason_of(denied)) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


async def test_the_tenant_comes_from_the_credential(service):
    for name, tenant in (("all", "acme"), ("other", "beta")):
        await service.inference.Submit(prompt(), metadata=bearer(TOKENS[name]))
        assert service.fake.submits[-1].tenant == tenant
    session = Session(service, metadata=bearer(TOKENS["other"]))
    await session.open()
    await session.submit(1, prompt())
    await session.until_finished(1)
    assert service.fake.submits[-1].tenant == "beta"
    page = await service.adapters.ListAdapters(adapter_pb2.ListAdaptersRequest(), metadata=bearer(TOKENS["reader"]))
    assert list(page.adapters) == []


async def test_the_scheme_is_taken_in_any_case(service):
    await service.inference.Submit(prompt(), metadata=(("authorization", f"bearer {TOKENS['all']}"),))


async def test_health_needs_no_credential(service):
    health: Any = health_pb2_grpc.HealthStub(service.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_keys_are_read_from_toml_too(tmp_path):
    path = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"t").hexdigest()
    path.write_text(f'[[keys]]\nsha256 = "{digest}"\ntenant = "acme"\nscopes = ["inference.submit"]\n')
    principal = AuthKeys.read(path).principal_of("t")
    assert principal is not None
    assert (principal.tenant, sorted(principal.scopes)) == ("acme", ["inference.submit"])


GOOD_ENTRY = KEYS["keys"][0]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({}, "keys"),
        ({"keys": []}, "keys"),
        ({"keys": [GOOD_ENTRY], "more": 1}, "nothing else"),
        ({"keys": [GOOD_ENTRY | {"token": "x"}]}, "keys[0]"),
        ({"keys": [GOOD_ENTRY | {"sha256": "x"}]}, "keys[0].sha256"),
        ({"keys": [GOOD_ENTRY, GOOD_ENTRY | {"tenant": "A B"}]}, "keys[1].tenant"),
        ({"keys": [GOOD_ENTRY | {"scopes": ["root"]}]}, "root"),
        ({"keys": [GOOD_ENTRY | {"scopes": "inference.submit"}]}, "keys[0].scopes"),
    ],
)
def test_a_malformed_keys_file_is_refused_and_says_where(tmp_path, document, told):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(document))
    with pytest.raises(AuthKeysError) as caught:
        AuthKeys.read(path)
    assert told in str(caught.value)
