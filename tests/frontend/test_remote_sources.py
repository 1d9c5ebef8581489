"""Adapters from elsewhere: what is allowed arrives, what hangs or lies ends with its code, and nothing half stays."""

import asyncio
import contextlib
import hashlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from loraplex.v1 import adapter_pb2
from loraplex_adapters.store import AdapterStore
from loraplex_contract.errors import DeadlineExceeded, LoraplexError, PermissionDenied
from loraplex_frontend.server import Frontend
from loraplex_frontend.sources.addresses import AddressRules
from loraplex_frontend.sources.fetch_folders import FetchFolder, sweep_fetch_folders
from loraplex_frontend.sources.rate_guard import RateGuard
from loraplex_frontend.sources.source_limits import SourceLimits
from tests.frontend.adapter_folder import write_adapter
from tests.frontend.service import frontend_settings
from tests.frontend.test_adapter_lifecycle import FILES, READY, Front, frontends, outcome, until
from tests.frontend.test_inference import failure
from tests.frontend.web_server import WebServer, endless, files, redirect, self_signed, status

TIMEOUT = ("DEADLINE_EXCEEDED", "SOURCE_TIMEOUT")
BROKEN = ("UNAVAILABLE", "SOURCE_BROKEN")
FORBIDDEN = ("PERMISSION_DENIED", "SOURCE_FORBIDDEN")
NOT_ALLOWED = ("PERMISSION_DENIED", "SOURCE_NOT_ALLOWED")
NOT_FOUND = ("INVALID_ARGUMENT", "SOURCE_NOT_FOUND")
DENIED = ("FAILED_PRECONDITION", "SOURCE_DENIED")
TOO_LARGE = ("FAILED_PRECONDITION", "ADAPTER_TOO_LARGE")
QUICK = {"fetch_timeout_s": 1.0, "fetch_read_timeout_s": 0.25, "fetch_connect_timeout_s": 2.0}


@pytest.fixture
async def web() -> AsyncIterator[WebServer]:
    async with WebServer().serving() as server:
        yield server


@pytest.fixture
def source(tmp_path) -> Path:
    return write_adapter(tmp_path / "a", seed=1)


@contextlib.asynccontextmanager
async def fetching(model_path: Path, tmp_path: Path, *sources: str, **settings: Any) -> AsyncIterator[Front]:
    (tmp_path / "state").mkdir(exist_ok=True)
    given = {"adapter_sources": sources, **QUICK, **settings}
    async with frontends(model_path, tmp_path, **given) as (front,):
        yield front


async def register(front: Front, uri: str, name: str = "far", **fields: Any) -> adapter_pb2.Adapter:
    request = adapter_pb2.RegisterAdapterRequest(name=name, uri=uri, **fields)
    adapter: adapter_pb2.Adapter = (await front.stub.RegisterAdapter(request)).adapter
    return adapter


async def refused(front: Front, uri: str) -> tuple[str, str]:
    return outcome(await failure(register(front, uri)))


async def nothing_is_left(tmp_path: Path) -> None:
    """In the folder of fetches, in the store, and in the store's temporary folder."""
    await until(lambda: not list((tmp_path / "store" / ".fetches").iterdir()))
    assert AdapterStore(tmp_path / "store").digests() == ()
    assert not list((tmp_path / "store" / ".tmp").iterdir())


# --- http ---


async def test_a_folder_on_a_web_server_becomes_the_same_version_as_the_folder_itself(
    model_path, tmp_path, source, web
):
    web.answers["/adapters/mine"] = files(source)
    async with fetching(model_path, tmp_path, f"{web.url}/adapters") as front:
        local = await front.register("near", source)
        watch = front.stub.WatchAdapters(adapter_pb2.WatchAdaptersRequest())
        while not (await watch.read()).list_complete:
            pass
        far = await register(front, f"{web.url}/adapters/mine/")
        assert (far.version.digest, far.state) == (local.version.digest, READY)
        states: list[Any] = []
        while not states or states[-1] != READY:
            states += [adapter.state for adapter in (await watch.read()).changed if adapter.name == "far"]
        watch.cancel()
        assert [adapter_pb2.AdapterState.Name(state).removeprefix("ADAPTER_STATE_") for state in states] == [
            "PENDING",
            "FETCHING",
            "VALIDATING",
            "READY",
        ]
        await until(lambda: not list((tmp_path / "store" / ".fetches").iterdir()))
    assert [asked.file_name for asked in web.asked] == list(FILES)


async def test_an_update_may_come_from_a_web_server_and_a_check_stores_nothing(model_path, tmp_path, source, web):
    web.answers["/b"] = files(write_adapter(tmp_path / "b", seed=2))
    async with fetching(model_path, tmp_path, web.url) as front:
        await front.register("sql", source)
        checked = await front.update(adapter={"name": "sql"}, uri=f"{web.url}/b", validate_only=True)
        assert len(AdapterStore(tmp_path / "store").digests()) == 1
        updated = await front.update(adapter={"name": "sql"}, uri=f"{web.url}/b")
        assert (updated.version.number, updated.version.digest) == (2, checked.version.digest)


async def test_what_no_entry_of_the_allow_list_covers_is_refused_by_the_settings_name(model_path, tmp_path, web):
    async with fetching(model_path, tmp_path, f"{web.url}/adapters", "s3://mine/x", "hf://org/repo") as front:
        for uri in (
            f"{web.url}/adaptersx",
            f"{web.url}/other",
            "http://127.0.0.1:1/adapters",
            "https://127.0.0.1/adapters",
            "s3://mine/y",
            "s3://mine2/x",
            "gs://mine/x",
            "hf://org/repo2",
            "hf://other/repo",
        ):
            error = await failure(register(front, uri))
            assert outcome(error) == NOT_ALLOWED, uri
            assert "adapter_sources" in str(error.details())
    assert web.asked == []


async def test_by_default_no_source_is_allowed(model_path, tmp_path):
    async with fetching(model_path, tmp_path) as front:
        for uri in ("http://example.com/a", "https://example.com/a", "s3://b/k", "gs://b/k", "az://b/k", "hf://o/r"):
            assert await refused(front, uri) == NOT_ALLOWED


FAULTS = {
    "hangs": (lambda web, source: web.hang(), TIMEOUT),
    "trickles": (lambda web, source: web.trickle(source), TIMEOUT),
    "dies at 99 %": (lambda web, source: files(source, sent=0.99), BROKEN),
    "announces more than it sends": (lambda web, source: files(source, announced=7), BROKEN),
    "announces less than it sends": (
        lambda web, source: files(source, announced=-7),
        ("INVALID_ARGUMENT", "ADAPTER_MALFORMED"),
    ),
    "announces a terabyte": (lambda web, source: files(source, announced=1 << 40), TOO_LARGE),
    "never ends": (lambda web, source: endless, TOO_LARGE),
    "is not there": (lambda web, source: status(404), NOT_FOUND),
    "wants credentials": (lambda web, source: status(401), DENIED),
    "is broken": (lambda web, source: status(500), BROKEN),
    "sends another encoding": (lambda web, source: files(source, "Content-Encoding: gzip"), BROKEN),
    "redirects to the metadata service": (
        lambda web, source: redirect("http://169.254.169.254/latest/meta-data"),
        FORBIDDEN,
    ),
    "redirects to a private network": (lambda web, source: redirect("http://10.1.2.3/x"), FORBIDDEN),
    "redirects to loopback by another name": (lambda web, source: redirect("http://localhost:1/x"), FORBIDDEN),
    "redirects to loopback in other digits": (lambda web, source: redirect("http://2130706433/x"), FORBIDDEN),
    "redirects to loopback in IPv6": (lambda web, source: redirect("http://[::1]/x"), FORBIDDEN),
    "redirects with credentials": (lambda web, source: redirect("http://a:b@example.com/"), FORBIDDEN),
    "redirects to another scheme": (lambda web, source: redirect("file:///etc/passwd"), BROKEN),
    "redirects to nowhere": (lambda web, source: redirect("http://a\\@b/"), BROKEN),
    "redirects for ever": (lambda web, source: redirect("/bad/{name}"), BROKEN),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
async def test_a_source_that_fails_ends_with_its_code_leaves_nothing_and_works_once_it_is_mended(
    model_path, tmp_path, source, web, fault
):
    make, expected = FAULTS[fault]
    web.answers["/bad"] = make(web, source)
    # Any web server is allowed, and this one's address is named: what is left are the rules for addresses.
    async with fetching(model_path, tmp_path, "http://", f"{web.url}/", max_adapter_bytes=1 << 20) as front:
        began_s = time.monotonic()
        assert await refused(front, f"{web.url}/bad") == expected
        assert time.monotonic() - began_s < 5.0
        await nothing_is_left(tmp_path)
        web.answers["/bad"] = files(source)
        assert (await register(front, f"{web.url}/bad")).state == READY


async def test_a_file_that_dies_at_the_last_percent_leaves_nothing_though_the_first_was_whole(
    model_path, tmp_path, source, web
):
    web.answers["/bad"] = files(source)
    web.answers[f"/bad/{FILES[1]}"] = files(source, sent=0.99)
    async with fetching(model_path, tmp_path, web.url) as front:
        assert await refused(front, f"{web.url}/bad") == BROKEN
        await nothing_is_left(tmp_path)


async def test_a_web_page_in_place_of_an_adapter_is_malformed(model_path, tmp_path, web):
    page = tmp_path / "page"
    page.mkdir()
    for name in FILES:
        (page / name).write_text("<html>sign in</html>")
    web.answers["/bad"] = files(page)
    async with fetching(model_path, tmp_path, web.url) as front:
        assert await refused(front, f"{web.url}/bad") == ("INVALID_ARGUMENT", "ADAPTER_MALFORMED")
        await nothing_is_left(tmp_path)


async def test_a_caller_that_gives_up_ends_the_fetch(model_path, tmp_path, web):
    web.answers["/bad"] = web.hang()
    slow = {"fetch_timeout_s": 60.0, "fetch_read_timeout_s": 60.0}
    async with fetching(model_path, tmp_path, web.url, max_fetches=1, **slow) as front:
        call = front.stub.RegisterAdapter(adapter_pb2.RegisterAdapterRequest(name="far", uri=f"{web.url}/bad"))
        await until(lambda: web.asked)
        full = await failure(register(front, f"{web.url}/other", name="next"))
        assert outcome(full) == ("RESOURCE_EXHAUSTED", "FETCHES_FULL")
        call.cancel()
        await nothing_is_left(tmp_path)
        await until(lambda: not front.frontend._remote._num_fetches)


async def test_a_source_that_hangs_holds_up_no_other_adapter_and_no_other_tenant(model_path, tmp_path, source, web):
    web.answers |= {"/bad": web.hang(), "/good": files(source)}
    slow = {"fetch_timeout_s": 60.0, "fetch_read_timeout_s": 60.0}
    async with fetching(model_path, tmp_path, web.url, max_fetches=3, **slow) as front:
        hanging = [register(front, f"{web.url}/bad", name=f"far-{number}") for number in range(2)]
        async with asyncio.TaskGroup() as tasks:
            stuck = [tasks.create_task(call) for call in hanging]
            await until(lambda: len(web.asked) == 2)
            async with asyncio.timeout(5):
                assert (await front.register("near", source)).state == READY
                full = await failure(register(front, f"{web.url}/good", name="next"))
                assert outcome(full) == ("RESOURCE_EXHAUSTED", "FETCHES_FULL")
                remote = front.frontend._remote
                async with remote.fetched(f"{web.url}/good", "another tenant") as folder:
                    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
            for task in stuck:
                task.cancel()
        await until(lambda: not remote._num_fetches)


async def test_a_redirect_may_lead_where_the_allow_list_leads_only(model_path, tmp_path, source, web):
    web.answers |= {
        "/old": redirect("/adapters/new/{name}"),
        "/out": redirect("/secret/{name}"),
        "/adapters/new": files(source),
        "/secret": files(source),
    }
    allowed = (f"{web.url}/old", f"{web.url}/out", f"{web.url}/adapters")
    async with fetching(model_path, tmp_path, *allowed) as front:
        assert (await register(front, f"{web.url}/old")).state == READY
        assert await refused(front, f"{web.url}/out") == FORBIDDEN
    assert not [asked for asked in web.asked if asked.path.startswith("/secret")]


async def test_a_name_with_a_private_address_is_fetched_from_only_if_the_operator_names_it(
    model_path, tmp_path, source, web
):
    web.answers["/a"] = files(source)
    uri = f"http://localhost:{web.port}/a"
    async with fetching(model_path, tmp_path, f"http://localhost:{web.port}") as front:
        assert await refused(front, uri) == FORBIDDEN
    async with fetching(model_path, tmp_path, uri, adapter_source_private_hosts=("LOCALHOST",)) as front:
        assert (await register(front, uri)).state == READY
    assert {asked.headers["host"] for asked in web.asked} == {f"localhost:{web.port}"}


async def test_the_connection_goes_to_the_address_that_was_checked(model_path, tmp_path, source, web, monkeypatch):
    """A name that changes its mind between two look-ups is looked up once for each connection."""
    web.answers["/a"] = files(source)
    real, looked_up = socket.getaddrinfo, []

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "rebind.test":
            looked_up.append(host)
            host = "127.0.0.1" if len(looked_up) <= 2 else "169.254.169.254"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    hosts = {"adapter_source_private_hosts": ("rebind.test",)}
    uri = f"http://rebind.test:{web.port}/a"
    async with fetching(model_path, tmp_path, f"http://rebind.test:{web.port}", **hosts) as front:
        assert (await register(front, uri)).state == READY
        assert len(looked_up) == len(FILES)
        assert await refused(front, uri) == FORBIDDEN


async def test_one_bad_address_among_good_ones_is_refused(monkeypatch):
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host: str, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("93.184.216.34", "127.0.0.1")]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    with pytest.raises(PermissionDenied):
        await AddressRules(lambda host: False).resolve("two-faced.test", 80)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1",
        "169.254.169.254", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001::1",
        "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address):
    with pytest.raises(PermissionDenied) as caught:
        AddressRules(lambda host: False).check("h", address)
    assert caught.value.reason == "SOURCE_FORBIDDEN"
    assert address not in caught.value.message


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "224.0.0.1", "::"])
def test_some_addresses_are_refused_though_the_operator_names_the_host(address):
    with pytest.raises(PermissionDenied):
        AddressRules(lambda host: True).check("h", address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_fetched_from(address):
    AddressRules(lambda host: False).check("h", address)


async def test_the_connection_to_a_checked_address_is_still_verified_by_name(model_path, tmp_path, source, monkeypatch):
    authority = self_signed(tmp_path, "models.test")
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith(".test") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    private = {"adapter_source_private_hosts": ("models.test", "other.test")}
    async with WebServer().serving(authority.server) as web:
        web.answers["/a"] = files(source)
        async with fetching(model_path, tmp_path, "https://", **private) as front:
            assert await refused(front, f"https://models.test:{web.port}/a") == BROKEN, "nobody trusts its authority"
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        async with fetching(model_path, tmp_path, "https://", **private) as front:
            assert await refused(front, f"https://other.test:{web.port}/a") == BROKEN, "it is somebody else"
            assert web.asked == []
            assert (await register(front, f"https://models.test:{web.port}/a")).state == READY


# --- the hub ---

COMMIT = "c" * 40


@pytest.fixture
async def storage() -> AsyncIterator[WebServer]:
    async with WebServer().serving() as server:
        yield server


def hub_settings(web: WebServer, tmp_path: Path) -> dict[str, Any]:
    token = tmp_path / "token"
    token.write_text("secret\n")
    return {
        "hf_endpoint": web.url,
        "hf_token_file": token,
        "hf_redirect_hosts": ("local*",),
        "adapter_source_private_hosts": ("localhost",),
    }


def host_on_hub(web: WebServer, storage: WebServer, source: Path, sha256: str) -> None:
    far = f"http://localhost:{storage.port}/blob/{{name}}?signature=x"
    linked = (f"X-Repo-Commit: {COMMIT}", f'X-Linked-Etag: "{sha256}"')
    web.answers["/org/repo/resolve/v1/adapter_config.json"] = files(source, f"X-Repo-Commit: {COMMIT}")
    web.answers[f"/org/repo/resolve/{COMMIT}/"] = redirect(far, *linked)
    storage.answers["/blob"] = files(source)


async def test_a_repository_is_read_at_one_commit_and_the_token_stays_at_the_hub(
    model_path, tmp_path, source, web, storage
):
    sha256 = hashlib.sha256((source / FILES[1]).read_bytes()).hexdigest()
    host_on_hub(web, storage, source, sha256)
    async with fetching(model_path, tmp_path, "hf://org", **hub_settings(web, tmp_path)) as front:
        assert (await register(front, "hf://org/repo@v1")).state == READY
    assert [asked.path for asked in web.asked] == [
        "/org/repo/resolve/v1/adapter_config.json",
        f"/org/repo/resolve/{COMMIT}/adapter_model.safetensors",
    ]
    assert [asked.headers.get("authorization") for asked in web.asked] == ["Bearer secret"] * 2
    assert [asked.headers.get("authorization") for asked in storage.asked] == [None]


async def test_other_bytes_than_the_hub_announced_are_refused(model_path, tmp_path, source, web, storage):
    host_on_hub(web, storage, source, "0" * 64)
    async with fetching(model_path, tmp_path, "hf://org/repo", **hub_settings(web, tmp_path)) as front:
        assert await refused(front, "hf://org/repo@v1") == BROKEN
        await nothing_is_left(tmp_path)


async def test_the_hub_may_not_redirect_to_any_host(model_path, tmp_path, source, web, storage):
    host_on_hub(web, storage, source, "0" * 64)
    settings = {**hub_settings(web, tmp_path), "hf_redirect_hosts": ("*.hf.co",)}
    async with fetching(model_path, tmp_path, "hf://", **settings) as front:
        assert await refused(front, "hf://org/repo@v1") == FORBIDDEN
    assert storage.asked == []


async def test_a_folder_of_a_repository_at_its_main_revision(model_path, tmp_path, source, web):
    web.answers["/org/repo/resolve/main/sub%20dir/deep/"] = files(source)
    async with fetching(model_path, tmp_path, "hf://org", hf_endpoint=web.url) as front:
        assert (await register(front, "hf://org/repo/sub%20dir/deep")).state == READY


# --- object stores ---


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def s3(s3_url, monkeypatch) -> Any:
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=s3_url)
    client.create_bucket(Bucket="bucket")
    return client


async def test_an_adapter_comes_from_a_bucket(model_path, tmp_path, source, s3, s3_url):
    for name in FILES:
        s3.upload_file(str(source / name), "bucket", f"team one/sql/{name}")
    async with fetching(model_path, tmp_path, "s3://bucket/team%20one", s3_endpoint=s3_url) as front:
        local = await front.register("near", source)
        far = await register(front, "s3://bucket/team%20one/sql")
        assert (far.state, far.version.digest) == (READY, local.version.digest)
        assert await refused(front, "s3://bucket/sql") == NOT_ALLOWED
        error = await failure(register(front, "s3://bucket/team%20one/none", name="none"))
        assert outcome(error) == NOT_FOUND


async def test_an_object_over_the_cap_is_refused_before_it_is_read(model_path, tmp_path, source, s3, s3_url):
    s3.upload_file(str(source / FILES[0]), "bucket", f"big/{FILES[0]}")
    s3.put_object(Bucket="bucket", Key=f"big/{FILES[1]}", Body=b"x" * 5_000)
    async with fetching(model_path, tmp_path, "s3://bucket", s3_endpoint=s3_url, max_adapter_bytes=4_999) as front:
        assert await refused(front, "s3://bucket/big") == TOO_LARGE
        await nothing_is_left(tmp_path)


STORES = {
    "s3": ("s3_endpoint", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}),
    "gs": ("gs_endpoint", {"GOOGLE_SKIP_SIGNATURE": "true"}),
    "az": ("az_endpoint", {"AZURE_SKIP_SIGNATURE": "true", "AZURE_STORAGE_ACCOUNT_NAME": "account"}),
}
STORE_HEADERS = ('ETag: "e"', "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT")
STORE_FAULTS = {
    "hangs": (lambda web, source: web.hang(), TIMEOUT),
    "dies at 99 %": (lambda web, source: files(source, *STORE_HEADERS, sent=0.99), BROKEN),
    "is not there": (lambda web, source: status(404), NOT_FOUND),
    "wants credentials": (lambda web, source: status(403), DENIED),
}


@pytest.mark.parametrize("scheme", sorted(STORES))
@pytest.mark.parametrize("fault", sorted(STORE_FAULTS))
async def test_an_object_store_that_fails_ends_with_its_code_and_works_once_it_is_mended(
    model_path, tmp_path, source, web, monkeypatch, scheme, fault
):
    setting, environment = STORES[scheme]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    make, expected = STORE_FAULTS[fault]
    web.answers["/"] = make(web, source)
    async with fetching(model_path, tmp_path, f"{scheme}://bucket/a", **{setting: web.url}) as front:
        assert await refused(front, f"{scheme}://bucket/a") == expected
        await nothing_is_left(tmp_path)
        web.answers["/"] = files(source, *STORE_HEADERS)
        assert (await register(front, f"{scheme}://bucket/a")).state == READY
    assert unquote(web.asked[-1].path).endswith(f"/a/{FILES[1]}")
    assert "bucket" in web.asked[-1].path


# --- what is left behind ---


def test_a_source_below_the_least_rate_is_given_up_whatever_it_promises():
    guard = RateGuard(SourceLimits(min_bytes_per_s=100, rate_window_s=10.0))
    for _ in range(4):
        guard.add(500, 5.0)
    guard.add(499, 5.0)
    with pytest.raises(DeadlineExceeded) as caught:
        guard.add(500, 5.0)
    assert caught.value.reason == "SOURCE_TIMEOUT"


def test_what_dead_processes_left_goes_and_what_is_young_or_in_use_stays(tmp_path):
    dead, young = tmp_path / "dead", tmp_path / "young"
    dead.mkdir()
    young.mkdir()
    (dead / FILES[1]).write_bytes(b"half")
    used = FetchFolder(tmp_path)
    for path in (dead, used.path):
        os.utime(path, (0, 0))
    assert sweep_fetch_folders(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([young, used.path])
    used.remove()
    assert list(tmp_path.iterdir()) == [young]


# --- what the operator sees ---


@pytest.mark.parametrize("entry", ["example.com", "ftp://x", "http://a:b@c", "https://x/?y", "hf://o/r@../x", "s3:/b"])
def test_an_entry_of_the_allow_list_that_is_none_stops_the_start(model_path, tmp_path, entry):
    with pytest.raises(ValueError, match="adapter"):
        frontend_settings(model_path, tmp_path, adapter_sources=(entry,))


@pytest.mark.parametrize(("source", "package"), [("hf://o", "httpcore2"), ("s3://b", "obstore")])
async def test_a_source_whose_package_is_missing_stops_the_start_and_names_the_extra(
    model_path, tmp_path, monkeypatch, source, package
):
    for name in ("http_folder", "hub_folder", "object_folder", "http_files", "checked_backend"):
        monkeypatch.delitem(sys.modules, f"loraplex_frontend.sources.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoraplexError, match=r"loraplex\[sources\]") as caught:
        await Frontend(frontend_settings(model_path, tmp_path, adapter_sources=(source,))).run()
    assert caught.value.metadata["package"] == package
