"""The SDK and the command against a real scheduler and frontend: upload, register, update, watch, remove."""

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loraplex_cli.main import app
from loraplex_client import AdapterState, AdapterUpload, AsyncClient, Client
from loraplex_contract import errors
from tests.client.adapter_service import adapter_service
from tests.frontend.adapter_folder import write_adapter

runner = CliRunner()
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapter-service")


@pytest.fixture(scope="module")
def address(data: Path) -> Iterator[str]:
    with adapter_service(data) as (listen, _):
        yield listen


@pytest.fixture
def loraplex(address: str) -> Any:
    def call(*arguments: Any, code: int = 0) -> str:
        done = runner.invoke(app, list(map(str, ("adapters", *arguments))), env={"LORAPLEX_TARGET": address})
        assert done.exit_code == code, done.output
        return done.stderr if code else done.stdout

    return call


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address) as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of this test alone, so that none sees what another left."""
    return "a" + str(abs(hash(request.node.name)) % 10**9)


# --- uploads ---


async def test_a_folder_of_this_machine_is_uploaded_and_registered(client, tmp_path, name):
    upload = await client.upload_adapter(write_adapter(tmp_path / "mine", seed=11))
    assert upload.is_complete
    assert upload.expire_time > datetime.datetime.now(datetime.UTC)
    adapter = await client.register_adapter(name, upload)
    assert (adapter.state, adapter.version.number) == (AdapterState.READY, 1)
    with pytest.raises(errors.NotFound):
        await client.register_adapter(name, upload, allow_update=True)


async def test_an_upload_that_another_program_began_is_gone_on_with(client, tmp_path, name):
    folder = write_adapter(tmp_path / "mine", seed=12, rank=8)
    whole = await client.upload_adapter(folder)
    again = await client.upload_adapter(folder, upload_id=whole.upload_id)
    assert again == AdapterUpload(upload_id=whole.upload_id, files=whole.files, expire_time=again.expire_time)
    (folder / WEIGHTS).write_bytes(b"x")
    with pytest.raises(errors.FailedPrecondition) as caught:
        await client.upload_adapter(folder, upload_id=whole.upload_id)
    assert caught.value.reason == "UPLOAD_CHANGED"


async def test_an_upload_whose_connection_breaks_goes_on_by_itself(address, tmp_path, name):
    """Through a proxy that cuts the first connection in the middle of the weights."""
    folder = write_adapter(tmp_path / "mine", seed=13, rank=512)
    size = (folder / WEIGHTS).stat().st_size
    async with CuttingProxy(address, cut_after=size // 2) as proxy, AsyncClient(proxy.address) as client:
        upload = await client.upload_adapter(folder)
        assert upload.is_complete
        assert proxy.num_cuts == 1
        adapter = await client.register_adapter(name, upload)
    assert adapter.state == AdapterState.READY


async def test_a_folder_without_an_adapter_is_refused_before_anything_is_sent(client, tmp_path):
    with pytest.raises(errors.InvalidArgument, match=r"adapter_config\.json"):
        await client.upload_adapter(tmp_path)


# --- registering, updating, watching ---


async def test_the_same_request_id_does_nothing_twice(client, data, name):
    folder = write_adapter(data / name, seed=14)
    expire_time = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=1)
    given = {"labels": {"team": "x"}, "description": "SQL", "expire_time": expire_time, "request_id": f"r-{name}"}
    first = await client.register_adapter(name, folder, **given)
    assert (first.labels, first.description, first.expire_time) == ({"team": "x"}, "SQL", expire_time)
    assert await client.register_adapter(name, folder, **given) == first
    with pytest.raises(errors.AlreadyExists) as caught:
        await client.register_adapter(name, folder, request_id=f"r-{name}")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    with pytest.raises(errors.InvalidArgument, match="time zone"):
        await client.register_adapter(name, folder, expire_time=datetime.datetime(2099, 1, 1))


async def test_an_update_changes_what_is_given_and_a_stale_etag_is_aborted(client, data, name):
    first = await client.register_adapter(
        name, write_adapter(data / name, seed=15), labels={"team": "x"}, description="old"
    )
    second = await client.update_adapter(name, description="new", etag=first.etag)
    assert (second.description, second.labels) == ("new", {"team": "x"})
    with pytest.raises(errors.Aborted) as caught:
        await client.update_adapter(name, labels={}, etag=first.etag)
    assert caught.value.reason == "ETAG_MISMATCH"
    next_version = write_adapter(data / f"{name}-2", seed=16)
    would_be = await client.update_adapter(name, source=next_version, validate_only=True)
    third = await client.update_adapter(name, source=next_version, labels={}, never_expires=True)
    assert (third.version.number, third.version.digest) == (2, would_be.version.digest)
    assert third.labels == {}


async def test_lists_are_filtered_by_labels_and_states(client, data, name):
    folder = write_adapter(data / name, seed=17)
    for team in ("x", "y"):
        await client.register_adapter(f"{name}-{team}", folder, labels={"team": team, "test": name})
    found = [adapter.name async for adapter in client.list_adapters(labels={"test": name, "team": "y"})]
    assert found == [f"{name}-y"]
    ready = {AdapterState.READY}
    assert len([1 async for _ in client.list_adapters(name, states=ready, page_size=1)]) == 2
    assert [1 async for _ in client.list_adapters(name, states={AdapterState.DRAINING})] == []


async def test_a_watch_begins_with_the_list_and_goes_on_where_it_ended(client, data, name):
    folder = write_adapter(data / name, seed=18)
    await client.register_adapter(name, folder)
    seen, revision = [], 0
    async for change in client.watch_adapters():
        seen += [adapter.name for adapter in change.adapters]
        if change.is_list_complete:
            revision = change.revision
            break
    assert name in seen
    await client.update_adapter(name, description="changed")
    await client.unregister_adapter(name)
    states = []
    async with asyncio.timeout(10):
        async for change in client.watch_adapters(from_revision=revision):
            states += [(adapter.state, adapter.description) for adapter in change.adapters if adapter.name == name]
            if states and states[-1][0] == AdapterState.DELETED:
                break
    assert (AdapterState.READY, "changed") in states


async def test_an_adapter_is_removed_only_as_it_was_read(client, data, name):
    adapter = await client.register_adapter(name, write_adapter(data / name, seed=19))
    await client.update_adapter(name, description="changed")
    with pytest.raises(errors.Aborted):
        await client.unregister_adapter(name, etag=adapter.etag)
    with pytest.raises(errors.InvalidArgument):
        await client.unregister_adapter(name, cancel_running=True, fail_if_in_use=True)
    gone = await client.unregister_adapter(name, fail_if_in_use=True, request_id=f"rm-{name}")
    assert gone.state == AdapterState.DELETED
    assert (await client.unregister_adapter(name, fail_if_in_use=True, request_id=f"rm-{name}")).name == name


# --- the command, which uses the synchronous client ---


def test_the_whole_life_on_the_command_line(loraplex, tmp_path, name):
    folder = write_adapter(tmp_path / "mine", seed=20)
    upload_id = loraplex("upload", folder).strip()
    assert loraplex("upload", folder, "--resume", upload_id).strip() == upload_id
    told = loraplex(
        "register", name, "--upload-id", upload_id, "--label", f"test={name}", "--description", "SQL for all",
        "--expires-in", "7d",
    )  # fmt: skip
    for text in ("registered", "SQL for all", f"label test={name}", "expires 20", "layers.0.q_proj", "scale 2", "F32"):
        assert text in told
    etag = told.split("etag ")[1].split()[0]
    assert loraplex("list", "--label", f"test={name}", "--state", "ready").startswith(name)
    told = loraplex("update", name, "--etag", etag, "--description", "better", "--never-expires", "--no-labels")
    assert "better" in told
    assert "expires" not in told
    assert "label " not in told
    assert "[ETAG_MISMATCH]" in loraplex("rm", name, "--etag", etag, code=1)
    watched = loraplex("watch", "--once")
    assert name in watched
    assert watched.splitlines()[-1].startswith("-- revision ")
    assert loraplex("rm", name, "--if-unused") == f"removed {name}\n"


def test_everything_that_an_adapter_is_refused_for_is_printed(loraplex, data, name):
    folder = write_adapter(data / name, seed=22, width=48)
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace('"bias": "none"', '"bias": "all"'))
    said = loraplex("register", name, folder, "--validate-only", code=1).splitlines()
    assert said[0].startswith("  bias: bias='all' is not supported")
    assert said[1].startswith("  base_model.model.model.layers.{0-1}.self_attn.q_proj.lora_A.weight: has shape [2, 48]")
    assert said[2].endswith("(and 2 more) [ADAPTER_FEATURE_UNSUPPORTED]")
    loraplex("register", name, folder, code=1)
    assert said[1] in loraplex("show", name)


def test_flags_that_contradict_each_other_or_say_nothing_are_refused(loraplex, tmp_path):
    for arguments in (
        ("register", "x"),
        ("register", "x", "/a", "--upload-id", "0" * 32),
        ("register", "x", "/a", "--label", "team"),
        ("register", "x", "/a", "--expires-in", "soon"),
        ("update", "x", "--label", "a=b", "--no-labels"),
    ):
        assert loraplex(*arguments, code=1).startswith("error: ")


def test_a_synchronous_watch_ends_when_it_is_closed(address, data, name):
    folder = write_adapter(data / name, seed=21)
    with Client(address) as client:
        adapter = client.register_adapter(name, client.upload_adapter(folder))
        assert client.update_adapter(name, labels={"a": "b"}).etag != adapter.etag
        changes = client.watch_adapters()
        first = next(changes)
        assert name in {adapter.name for adapter in first.adapters} or not first.is_list_complete
        changes.close()
        client.unregister_adapter(name)


class CuttingProxy:
    """TCP between a client and a server; cuts the first connection after so many bytes."""

    def __init__(self, target: str, *, cut_after: int) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._left = cut_after
        self.num_cuts = 0

    async def __aenter__(self) -> "CuttingProxy":
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(far_reader, writer, counted=False))
                tasks.create_task(self._pump(reader, far_writer, counted=True))
        finally:
            writer.close()
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if counted and self.num_cuts == 0:
                    self._left -= len(data)
                    if self._left <= 0:
                        self.num_cuts += 1
                        writer.transport.abort()
                        return
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            if not writer.transport.is_closing():
                writer.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
