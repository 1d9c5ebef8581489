"""Registering, listing and removing adapters, against a registry that remembers."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from loraplex.v1 import adapter_pb2, adapter_ref_pb2
from loraplex_adapters.ingest import ingest
from loraplex_adapters.store import AdapterStore
from loraplex_contract.errors import FailedPrecondition
from tests.fakes.fake_scheduler import echo
from tests.frontend.adapter_folder import write_adapter
from tests.frontend.service import Service, fields_of, info_of, reason_of, started
from tests.frontend.test_inference import failure, prompt

NOT_ALLOWED = (grpc.StatusCode.PERMISSION_DENIED, "SOURCE_NOT_ALLOWED")


@pytest.fixture
def root(tmp_path) -> Path:
    folder: Path = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture
async def service(model_path, tmp_path, root) -> AsyncIterator[Service]:
    async with started(model_path, tmp_path, script=echo(), adapter_roots=(root,), allow_request_uri=True) as running:
        yield running


def register(name: str, folder: Path | str, **fields) -> adapter_pb2.RegisterAdapterRequest:
    uri = folder if isinstance(folder, str) else folder.as_uri()
    return adapter_pb2.RegisterAdapterRequest(name=name, uri=uri, **fields)


def outcome(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    return error.code(), reason_of(error)


# --- register ---


async def test_register_stores_the_bytes_then_commits_and_reports_what_is_applied(service, root, store):
    request = register("sql", write_adapter(root / "a"), labels={"team": "x"})
    adapter = (await service.adapters.RegisterAdapter(request)).adapter
    assert (adapter.name, adapter.state, adapter.version.number) == ("sql", adapter_pb2.ADAPTER_STATE_READY, 1)
    report = adapter.version.report
    assert [(m.module, m.rank, m.scale) for m in report.modules] == [
        ("layers.0.q_proj", 2, 2.0),
        ("layers.1.q_proj", 2, 2.0),
    ]
    assert (report.dtype, report.max_rank, report.base_model_name) == ("F32", 2, "tiny")
    assert store.has(adapter.version.digest)
    (commit,) = service.fake.registry.commits
    assert (commit.tenant, commit.name, commit.digest) == ("default", "sql", adapter.version.digest)
    assert commit.num_parameters == 2 * 2 * (32 + 32)
    assert commit.num_bytes == commit.num_parameters * 4
    assert dict(commit.labels) == {"team": "x"}


async def test_a_plain_absolute_path_is_taken_too(service, root):
    folder = write_adapter(root / "a b%20c")
    adapter = (await service.adapters.RegisterAdapter(register("sql", str(folder)))).adapter
    again = (await service.adapters.RegisterAdapter(register("sql", folder))).adapter
    assert adapter.version.digest == again.version.digest


async def test_other_bytes_under_a_taken_name_need_allow_update(service, root):
    await service.adapters.RegisterAdapter(register("sql", write_adapter(root / "a", seed=1)))
    other = write_adapter(root / "b", seed=2)
    error = await failure(service.adapters.RegisterAdapter(register("sql", other)))
    assert outcome(error) == (grpc.StatusCode.ALREADY_EXISTS, "ADAPTER_EXISTS")
    adapter = (await service.adapters.RegisterAdapter(register("sql", other, allow_update=True))).adapter
    assert adapter.version.number == 2


async def test_validate_only_reports_and_leaves_nothing_behind(service, root, store):
    request = register("sql", write_adapter(root / "a"), validate_only=True)
    adapter = (await service.adapters.RegisterAdapter(request)).adapter
    assert (adapter.version.number, len(adapter.version.report.modules)) == (0, 2)
    assert store.digests() == ()
    assert service.fake.registry.commits == []


async def test_another_digest_than_expected_stores_nothing(service, root, store):
    folder = write_adapter(root / "a")
    error = await failure(service.adapters.RegisterAdapter(register("sql", folder, expected_digest="0" * 64)))
    assert outcome(error) == (grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH")
    assert store.digests() == ()
    digest = info_of(error).metadata["digest"]
    adapter = (await service.adapters.RegisterAdapter(register("sql", folder, expected_digest=digest))).adapter
    assert adapter.version.digest == digest


async def test_an_adapter_that_does_not_fit_the_model_is_refused(service, root, store):
    folder = write_adapter(root / "a", width=48)
    error = await failure(service.adapters.RegisterAdapter(register("sql", folder)))
    assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert reason_of(error).startswith("ADAPTER_")
    assert store.digests() == ()


async def test_a_refusal_of_the_registry_reaches_the_caller(service, root):
    service.fake.registry.error = FailedPrecondition("name: is draining", reason="ADAPTER_DRAINING")
    error = await failure(service.adapters.RegisterAdapter(register("sql", write_adapter(root / "a"))))
    assert outcome(error) == (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_DRAINING")


# --- where adapters may come from ---


async def test_folders_outside_the_roots_are_not_allowed_whether_they_exist_or_not(service, root, tmp_path):
    outside = write_adapter(tmp_path / "outside")
    (root / "link").symlink_to(outside)
    (tmp_path / "rootless").mkdir()
    sources = [
        outside,
        root / "link",
        root / ".." / "outside",
        tmp_path / "rootless",
        root / "missing",
        Path("/etc"),
    ]
    messages = set()
    for source in sources:
        for uri in (str(source), f"file://{source}"):
            error = await failure(service.adapters.RegisterAdapter(register("sql", uri)))
            assert outcome(error) == NOT_ALLOWED
            messages.add(error.details())
    assert len(messages) == 1, "nothing tells what exists"


@pytest.mark.parametrize(
    "uri",
    [
        "relative/path",
        "ftp://host/x",
        "http://user:secret@host/x",
        "https://host/x?token=y",
        "file://host/x",
        "file:///x?y",
        "file:relative",
        "s3://b/../k",
        "file:///a%00b",
        "",
    ],
)
async def test_other_kinds_of_sources_are_refused(service, uri):
    error = await failure(service.adapters.RegisterAdapter(register("sql", uri)))
    assert outcome(error) == (grpc.StatusCode.INVALID_ARGUMENT, "SOURCE_INVALID")


async def test_a_check_names_everything_that_is_wrong(model_path, tmp_path, root):
    folder = write_adapter(root / "bad", width=48)
    config = json.loads((folder / "adapter_config.json").read_text())
    changed = {**config, "bias": "all", "target_modules": ["q_proj", "k_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    async with started(model_path, tmp_path, adapter_roots=(root,)) as service:
        error = await failure(service.adapters.RegisterAdapter(register("sql", folder.as_uri(), validate_only=True)))
    prefix = "base_model.model.model.layers.{0-1}.self_attn"
    assert fields_of(error) == [
        "bias",
        f"{prefix}.q_proj.lora_A.weight",
        f"{prefix}.k_proj.lora_A.weight",
        f"{prefix}.k_proj.lora_B.weight",
    ]


async def test_without_roots_nothing_may_be_registered(model_path, tmp_path, root):
    async with started(model_path, tmp_path) as service:
        error = await failure(service.adapters.RegisterAdapter(register("sql", write_adapter(root / "a"))))
    assert outcome(error) == NOT_ALLOWED


# --- malformed ---


async def test_every_field_of_a_registration_is_checked(service):
    request = register("Bad Name", "file:///x", expected_digest="xyz", labels={"": "v"})
    error = await failure(service.adapters.RegisterAdapter(request))
    assert fields_of(error) == ["name", "expected_digest", "labels"]
    error = await failure(service.adapters.RegisterAdapter(register("uri-abc", "file:///x")))
    assert fields_of(error) == ["name"], "names that the server gives itself"


async def test_features_of_later_releases_are_refused_by_name(service):
    stub = service.adapters
    calls = {
        "PinAdapter": stub.PinAdapter(adapter_pb2.PinAdapterRequest()),
        "UnpinAdapter": stub.UnpinAdapter(adapter_pb2.UnpinAdapterRequest()),
        "WarmAdapter": stub.WarmAdapter(adapter_pb2.WarmAdapterRequest()),
    }
    for feature, call in calls.items():
        error = await failure(call)
        assert outcome(error) == (grpc.StatusCode.UNIMPLEMENTED, "FEATURE_DISABLED")
        assert info_of(error).metadata["feature"] == feature


# --- get, list, unregister ---


async def test_get_and_list_relay_the_registry(service, root):
    for number in range(3):
        await service.adapters.RegisterAdapter(register(f"a{number}", write_adapter(root / f"{number}", seed=number)))
    got = (await service.adapters.GetAdapter(adapter_pb2.GetAdapterRequest(name="a1"))).adapter
    assert len(got.version.report.modules) == 2
    page = await service.adapters.ListAdapters(adapter_pb2.ListAdaptersRequest(page_size=2))
    assert [adapter.name for adapter in page.adapters] == ["a0", "a1"]
    assert not any(adapter.version.report.modules for adapter in page.adapters)
    assert all(adapter.version.report.max_rank == 2 for adapter in page.adapters)
    request = adapter_pb2.ListAdaptersRequest(page_size=2, page_token=page.next_page_token)
    assert [adapter.name for adapter in (await service.adapters.ListAdapters(request)).adapters] == ["a2"]


async def test_an_unknown_name_is_not_found(service):
    for call in (
        service.adapters.GetAdapter(adapter_pb2.GetAdapterRequest(name="x")),
        service.adapters.UnregisterAdapter(adapter_pb2.UnregisterAdapterRequest(name="x")),
    ):
        assert outcome(await failure(call)) == (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"page_size": 1001}, "page_size"),
        ({"page_token": "x" * 1025}, "page_token"),
        ({"name_prefix": "NO"}, "name_prefix"),
        ({"states": [99]}, "states"),
        ({"states": [1] * 9}, "states"),
    ],
)
async def test_list_checks_its_fields(service, fields, field):
    error = await failure(service.adapters.ListAdapters(adapter_pb2.ListAdaptersRequest(**fields)))
    assert field in fields_of(error)


async def test_unregister_frees_the_bytes_that_nothing_points_at(service, root, store):
    folder = write_adapter(root / "a")
    for name in ("one", "two"):
        await service.adapters.RegisterAdapter(register(name, folder))
    (digest,) = store.digests()
    gone = await service.adapters.UnregisterAdapter(adapter_pb2.UnregisterAdapterRequest(name="one"))
    assert gone.adapter.state == adapter_pb2.ADAPTER_STATE_DELETED
    assert store.has(digest), "the other name still points at it"
    await service.adapters.UnregisterAdapter(adapter_pb2.UnregisterAdapterRequest(name="two"))
    assert not store.has(digest)


async def test_bytes_registered_again_while_a_removal_waits_stay(service, root, store):
    folder = write_adapter(root / "a")
    await service.adapters.RegisterAdapter(register("one", folder))
    service.fake.registry.may_remove.clear()
    removal = service.adapters.UnregisterAdapter(adapter_pb2.UnregisterAdapterRequest(name="one"))
    removing = asyncio.ensure_future(removal.wait_for_connection())
    await asyncio.wait_for(service.fake.registry.removing.wait(), 5)
    await service.adapters.RegisterAdapter(register("two", folder))
    service.fake.registry.may_remove.set()
    await removal
    await removing
    assert len(store.digests()) == 1


# --- adapters by uri ---


async def test_a_request_may_bring_its_adapter_from_an_allowed_folder(service, root, store):
    folder = write_adapter(root / "a")
    request = prompt(adapter=adapter_ref_pb2.AdapterRef(uri=folder.as_uri(), scale=0.5))
    answer = await service.inference.Submit(request)
    (digest,) = store.digests()
    (adapter,) = answer.prompt.adapters
    assert (adapter.name, adapter.weight) == (f"uri-{digest[:16]}", 0.5)
    assert service.fake.submits[-1].adapters[0].version == digest


async def test_many_requests_for_one_folder_read_it_once_and_a_change_is_noticed(service, root, store, monkeypatch):
    folder = write_adapter(root / "a")
    reads: list[object] = []

    def counted(*args, **kwargs):
        reads.append(args)
        return ingest(*args, **kwargs)

    monkeypatch.setattr("loraplex_frontend.adapter_ingest.ingest", counted)
    request = prompt(adapter=adapter_ref_pb2.AdapterRef(uri=str(folder)))
    await asyncio.gather(*(service.inference.Submit(request) for _ in range(8)))
    await service.inference.Submit(request)
    assert len(reads) == 1
    write_adapter(folder, seed=9)
    await service.inference.Submit(request)
    assert len(reads) == 2
    assert len(store.digests()) == 2


async def test_a_request_from_outside_the_roots_is_refused(service, tmp_path):
    outside = write_adapter(tmp_path / "outside")
    error = await failure(service.inference.Submit(prompt(adapter=adapter_ref_pb2.AdapterRef(uri=str(outside)))))
    assert outcome(error) == (grpc.StatusCode.FAILED_PRECONDITION, "SOURCE_NOT_ALLOWED")


async def test_a_refused_folder_is_refused_for_all_who_wait_and_read_again_later(service, root):
    folder = write_adapter(root / "a", width=48)
    request = prompt(adapter=adapter_ref_pb2.AdapterRef(uri=str(folder)))
    errors = await asyncio.gather(*(failure(service.inference.Submit(request)) for _ in range(4)))
    assert len({outcome(error) for error in errors}) == 1
    write_adapter(folder)
    await service.inference.Submit(request)
