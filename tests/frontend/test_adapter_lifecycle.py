"""Uploads, updates and watches through a frontend with the real registry behind it, and two frontends on one store."""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2, timestamp_pb2

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_adapters.store import AdapterStore
from loraplex_frontend.server import Frontend
from tests.frontend.adapter_folder import write_adapter
from tests.frontend.service import WAIT_S, frontend_settings, info_of, reason_of
from tests.frontend.test_inference import failure
from tests.scheduler.link_peers import scheduler

READY = adapter_pb2.ADAPTER_STATE_READY
FILES = ("adapter_config.json", "adapter_model.safetensors")


class Front:
    """One frontend and a stub to it."""

    def __init__(self, frontend: Frontend, stub: Any) -> None:
        self.frontend = frontend
        self.stub = stub

    async def register(self, name: str, folder: Path, **fields: Any) -> adapter_pb2.Adapter:
        request = adapter_pb2.RegisterAdapterRequest(name=name, uri=folder.as_uri(), **fields)
        adapter: adapter_pb2.Adapter = (await self.stub.RegisterAdapter(request)).adapter
        return adapter

    async def unregister(self, name: str, **fields: Any) -> adapter_pb2.Adapter:
        request = adapter_pb2.UnregisterAdapterRequest(name=name, **fields)
        adapter: adapter_pb2.Adapter = (await self.stub.UnregisterAdapter(request)).adapter
        return adapter

    async def update(self, *paths: str, adapter: dict[str, Any], **fields: Any) -> adapter_pb2.Adapter:
        mask = field_mask_pb2.FieldMask(paths=paths)
        request = adapter_pb2.UpdateAdapterRequest(adapter=adapter_pb2.Adapter(**adapter), update_mask=mask, **fields)
        answer: adapter_pb2.Adapter = (await self.stub.UpdateAdapter(request)).adapter
        return answer


@contextlib.asynccontextmanager
async def frontends(model_path: Path, folder: Path, count: int = 1, **settings: Any) -> AsyncIterator[list[Front]]:
    """On one store, with one scheduler."""
    given = {"adapter_roots": (folder,), **settings}
    async with scheduler(folder / "state") as service, contextlib.AsyncExitStack() as open_fronts:
        tasks = await open_fronts.enter_async_context(asyncio.TaskGroup())
        fronts = []
        for _ in range(count):
            frontend = Frontend(frontend_settings(model_path, folder, scheduler=service.address, **given))
            tasks.create_task(frontend.run())
            open_fronts.callback(frontend.stop)
            async with asyncio.timeout(WAIT_S):
                await frontend.is_listening.wait()
            channel = await open_fronts.enter_async_context(grpc.aio.insecure_channel(frontend.ports["listen"]))
            fronts.append(Front(frontend, adapter_pb2_grpc.AdapterServiceStub(channel)))
        yield fronts


@pytest.fixture
async def front(model_path, tmp_path) -> AsyncIterator[Front]:
    (tmp_path / "state").mkdir()
    async with frontends(model_path, tmp_path) as (only,):
        yield only


@pytest.fixture
def source(tmp_path) -> Path:
    return write_adapter(tmp_path / "a", seed=1)


def outcome(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    return error.code().name, reason_of(error)


# --- update ---


async def test_an_update_changes_the_fields_of_its_mask_and_the_version_if_there_is_a_source(front, source, tmp_path):
    first = await front.register("sql", source, labels={"team": "x"}, description="old")
    other = write_adapter(tmp_path / "b", seed=2)
    second = await front.update("description", adapter={"name": "sql", "description": "new"}, uri=other.as_uri())
    assert (second.version.number, second.description, dict(second.labels)) == (2, "new", {"team": "x"})
    assert second.version.digest != first.version.digest
    third = await front.update("labels", adapter={"name": "sql", "labels": {"team": "y"}})
    assert (third.version.number, dict(third.labels)) == (2, {"team": "y"})


async def test_an_update_of_a_stale_etag_is_aborted(front, source):
    read = await front.register("sql", source)
    await front.update("description", adapter={"name": "sql", "description": "mine", "etag": read.etag})
    late = front.update("description", adapter={"name": "sql", "description": "late", "etag": read.etag})
    assert outcome(await failure(late)) == ("ABORTED", "ETAG_MISMATCH")
    never = front.unregister("sql", etag="made-up")
    assert outcome(await failure(never)) == ("ABORTED", "ETAG_MISMATCH")


async def test_an_update_that_is_only_to_be_checked_changes_nothing(front, source, tmp_path):
    before = await front.register("sql", source)
    other = write_adapter(tmp_path / "b", seed=2)
    would_be = await front.update(
        "description", adapter={"name": "sql", "description": "new"}, uri=other.as_uri(), validate_only=True
    )
    assert would_be.description == "new"
    assert would_be.version.digest != before.version.digest
    assert (await front.stub.GetAdapter(adapter_pb2.GetAdapterRequest(name="sql"))).adapter == before
    assert AdapterStore(tmp_path / "store").digests() == (before.version.digest,)


async def test_an_update_of_an_unknown_name_or_of_nothing_is_refused(front, source):
    missing = front.update("labels", adapter={"name": "sql"})
    assert outcome(await failure(missing)) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
    missing = front.update(adapter={"name": "sql"}, uri=source.as_uri())
    assert outcome(await failure(missing)) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
    for update in (front.update(adapter={"name": "sql"}), front.update("state", adapter={"name": "sql"})):
        assert outcome(await failure(update)) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_a_registration_that_comes_twice_is_carried_out_once(front, source, tmp_path):
    await front.register("sql", source, request_id="r1")
    await front.update(adapter={"name": "sql"}, uri=write_adapter(tmp_path / "b", seed=2).as_uri())
    assert (await front.register("sql", source, request_id="r1")).version.number == 2
    reused = front.register("other", source, request_id="r1")
    assert outcome(await failure(reused)) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


async def test_an_expiry_in_the_past_is_refused(front, source):
    past = timestamp_pb2.Timestamp(seconds=int(time.time()) - 1)
    assert outcome(await failure(front.register("sql", source, expire_time=past))) == (
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
    )


# --- list and watch ---


async def test_a_watch_shows_a_refused_registration_and_a_label_selects(front, source, tmp_path):
    await front.register("sql", source, labels={"team": "x"})
    watch = front.stub.WatchAdapters(adapter_pb2.WatchAdaptersRequest())
    listed = await watch.read()
    assert [(adapter.name, adapter.version.report.max_rank) for adapter in listed.changed] == [("sql", 2)]
    assert (await watch.read()).list_complete
    await failure(front.register("wide", write_adapter(tmp_path / "wide", width=48)))
    states: list[int] = []
    async with asyncio.timeout(WAIT_S):
        while not states or states[-1] != adapter_pb2.ADAPTER_STATE_FAILED:
            states += [adapter.state for adapter in (await watch.read()).changed]
    watch.cancel()
    assert states == [
        adapter_pb2.ADAPTER_STATE_PENDING,
        adapter_pb2.ADAPTER_STATE_VALIDATING,
        adapter_pb2.ADAPTER_STATE_FAILED,
    ]
    page = await front.stub.ListAdapters(adapter_pb2.ListAdaptersRequest(labels={"team": "x"}))
    assert [adapter.name for adapter in page.adapters] == ["sql"]
    failed = (await front.stub.GetAdapter(adapter_pb2.GetAdapterRequest(name="wide"))).adapter
    assert failed.error.reason.startswith("ADAPTER_")


# --- one store, two frontends ---


async def test_bytes_that_one_frontend_registers_while_another_deletes_them_stay(
    model_path, tmp_path, source, monkeypatch
):
    """The deletion is held up between the registry's answer and the store, as a slow disk would hold it up."""
    (tmp_path / "state").mkdir()
    store = AdapterStore(tmp_path / "store")
    async with frontends(model_path, tmp_path, count=2) as (one, two):
        digest = (await one.register("sql", source)).version.digest
        may_delete, deleting = asyncio.Event(), asyncio.Event()
        ingest = one.frontend._ingest
        delete = ingest.delete

        async def held_up(*args: Any, **kwargs: Any) -> Any:
            deleting.set()
            await may_delete.wait()
            return await delete(*args, **kwargs)

        monkeypatch.setattr(ingest, "delete", held_up)
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            removal = tasks.create_task(one.unregister("sql"))
            await deleting.wait()
            registration = tasks.create_task(two.register("again", source))
            await asyncio.wait({registration}, timeout=0.2)
            assert not registration.done(), "it must wait for the deletion"
            may_delete.set()
            await removal
            assert (await registration).version.digest == digest
        assert store.read_spec(digest).digest == digest, "the name has its bytes"


async def test_deletions_and_registrations_of_one_digest_leave_no_name_without_bytes(model_path, tmp_path, source):
    (tmp_path / "state").mkdir()
    store = AdapterStore(tmp_path / "store")
    async with frontends(model_path, tmp_path, count=2) as both:
        for _ in range(10):
            first = await both[0].register("sql", source)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(both[0].unregister("sql"))
                tasks.create_task(both[1].register("again", source))
            assert store.has(first.version.digest)
            await both[1].unregister("again")
            assert not store.has(first.version.digest)


# --- uploads ---


def header(folder: Path, name: str, **fields: Any) -> adapter_pb2.UploadAdapterRequest:
    data = (folder / name).read_bytes()
    given = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **fields}
    return adapter_pb2.UploadAdapterRequest(header=adapter_pb2.UploadHeader(file_name=name, **given))


def chunk(offset: int, data: bytes) -> adapter_pb2.UploadAdapterRequest:
    return adapter_pb2.UploadAdapterRequest(chunk=adapter_pb2.UploadChunk(offset=offset, data=data))


TRAILER = adapter_pb2.UploadAdapterRequest(trailer=adapter_pb2.UploadTrailer())


def messages(folder: Path, *names: str, size: int = 300, **fields: Any) -> list[adapter_pb2.UploadAdapterRequest]:
    """Of whole files; ``fields`` go into the first header."""
    sent: list[adapter_pb2.UploadAdapterRequest] = []
    for name in names or FILES:
        data = (folder / name).read_bytes()
        sent.append(header(folder, name, **(fields if not sent else {})))
        sent += [chunk(start, data[start : start + size]) for start in range(0, len(data), size)]
        sent.append(TRAILER)
    return sent


async def test_an_upload_becomes_an_adapter_and_is_gone_then(front, source, tmp_path):
    answer = await front.stub.UploadAdapter(iter(messages(source)))
    assert [(file.file_name, file.is_complete) for file in answer.files] == [(name, True) for name in FILES]
    request = adapter_pb2.RegisterAdapterRequest(name="sql", upload_id=answer.upload_id)
    adapter = (await front.stub.RegisterAdapter(request)).adapter
    assert (adapter.state, len(adapter.version.report.modules)) == (READY, 2)
    again = adapter_pb2.RegisterAdapterRequest(name="other", upload_id=answer.upload_id)
    assert outcome(await failure(front.stub.RegisterAdapter(again))) == ("NOT_FOUND", "UPLOAD_NOT_FOUND")
    assert not [entry for entry in (tmp_path / "store" / ".uploads").iterdir() if entry.is_dir()]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


async def until(question: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not question():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def answer_when_free(front: Front, sent: list[adapter_pb2.UploadAdapterRequest]) -> Any:
    """The broken call's end may reach the server a moment later than this one's beginning."""
    for _ in range(200):
        try:
            return await front.stub.UploadAdapter(iter(sent))
        except grpc.aio.AioRpcError as error:
            if outcome(error) != ("ABORTED", "UPLOAD_BUSY"):
                raise
            await asyncio.sleep(0.01)
    raise AssertionError("the upload stays busy")


async def test_an_upload_that_breaks_goes_on_where_it_was_also_at_another_frontend(model_path, tmp_path, source):
    (tmp_path / "state").mkdir()
    weights = (source / FILES[1]).read_bytes()
    async with frontends(model_path, tmp_path, count=2) as (one, two):
        call = one.stub.UploadAdapter()
        for message in [*messages(source, FILES[0]), header(source, FILES[1]), chunk(0, weights[:700])]:
            await call.write(message)
        upload_id = dict(await call.initial_metadata())["loraplex-upload-id"]
        await until(lambda: size_of(tmp_path / "store" / ".uploads" / upload_id / f"{FILES[1]}.part") == 700)
        call.cancel()
        ask = [header(source, FILES[1], resume_upload_id=upload_id)]
        state = await answer_when_free(two, ask)
        assert {file.file_name: file.num_committed_bytes for file in state.files}[FILES[1]] == 700
        rest = [*ask, chunk(700, weights[700:]), TRAILER]
        answer = await two.stub.UploadAdapter(iter(rest))
        assert all(file.is_complete for file in answer.files)
        request = adapter_pb2.RegisterAdapterRequest(name="sql", upload_id=upload_id)
        assert (await one.stub.RegisterAdapter(request)).adapter.state == READY


async def test_a_gap_or_a_repeat_is_out_of_range_and_says_where_to_go_on(front, source):
    for offset in (5, 100):
        sent = [header(source, FILES[1]), chunk(0, b"x" * 10), chunk(offset, b"y")]
        error = await failure(front.stub.UploadAdapter(iter(sent)))
        assert outcome(error) == ("OUT_OF_RANGE", "UPLOAD_OFFSET")
        assert info_of(error).metadata["num_committed_bytes"] == "10"


async def test_other_bytes_than_announced_are_refused_and_the_file_starts_again(front, source):
    size = (source / FILES[0]).stat().st_size
    call = front.stub.UploadAdapter(iter([header(source, FILES[0]), chunk(0, b"x" * size), TRAILER]))
    error = await failure(call)
    assert outcome(error) == ("INVALID_ARGUMENT", "DIGEST_MISMATCH")
    upload_id = dict(await call.initial_metadata())["loraplex-upload-id"]
    answer = await front.stub.UploadAdapter(iter(messages(source, FILES[0], resume_upload_id=upload_id)))
    assert answer.files[0].is_complete


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"file_name": "../x"}, "INVALID_ARGUMENT", "FIELD_INVALID"),
        ({"num_bytes": 0}, "INVALID_ARGUMENT", "FIELD_INVALID"),
        ({"num_bytes": 3 << 30}, "FAILED_PRECONDITION", "ADAPTER_TOO_LARGE"),
        ({"sha256": "xyz"}, "INVALID_ARGUMENT", "FIELD_INVALID"),
        ({"resume_upload_id": "../../etc"}, "NOT_FOUND", "UPLOAD_NOT_FOUND"),
        ({"resume_upload_id": "0" * 32}, "NOT_FOUND", "UPLOAD_NOT_FOUND"),
    ],
)
async def test_a_header_is_checked_before_anything_is_written(front, tmp_path, change, code, reason):
    given = {"file_name": FILES[1], "num_bytes": 9, "sha256": "0" * 64, **change}
    sent = [adapter_pb2.UploadAdapterRequest(header=adapter_pb2.UploadHeader(**given))]
    assert outcome(await failure(front.stub.UploadAdapter(iter(sent)))) == (code, reason)
    assert not [entry for entry in (tmp_path / "store" / ".uploads").iterdir() if entry.is_dir()]


async def test_chunks_beyond_the_announced_size_and_out_of_order_messages_are_refused(front, source):
    over = [header(source, FILES[1], num_bytes=4), chunk(0, b"12345")]
    assert outcome(await failure(front.stub.UploadAdapter(iter(over)))) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    for sent in ([chunk(0, b"x")], [TRAILER], []):
        error = await failure(front.stub.UploadAdapter(iter(sent)))
        assert outcome(error) == ("INVALID_ARGUMENT", "PROTOCOL_VIOLATION")


async def test_uploads_take_a_bounded_part_of_the_disk_and_expire(model_path, tmp_path, source):
    (tmp_path / "state").mkdir()
    big = adapter_pb2.UploadHeader(file_name=FILES[1], num_bytes=600, sha256="0" * 64)
    async with frontends(model_path, tmp_path, max_upload_bytes=1_000) as (front,):
        sent = [adapter_pb2.UploadAdapterRequest(header=big)]
        first = await front.stub.UploadAdapter(iter(sent))
        error = await failure(front.stub.UploadAdapter(iter(sent)))
        assert outcome(error) == ("RESOURCE_EXHAUSTED", "UPLOAD_SPACE")
        folder = tmp_path / "store" / ".uploads" / first.upload_id
        os.utime(folder, (0, 0))
        assert await front.frontend._uploads.sweep() == 1
        big.resume_upload_id = first.upload_id
        again = [adapter_pb2.UploadAdapterRequest(header=big)]
        assert outcome(await failure(front.stub.UploadAdapter(iter(again)))) == ("NOT_FOUND", "UPLOAD_NOT_FOUND")
        assert (await front.stub.UploadAdapter(iter(sent))).upload_id
