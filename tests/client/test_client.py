"""The synchronous client against a server in another process."""

import concurrent.futures
import threading

import pytest

from loraplex_client import Client, SamplingParams
from loraplex_contract import errors
from tests.client.conftest import adapter_folder


@pytest.fixture
def client(fake_server):
    with Client(fake_server.target, admin_target=fake_server.admin_target) as client:
        yield client


def test_it_generates_streams_and_answers_about_the_server(client):
    assert client.generate("tokens=2").text == "base:0 base:1 "
    with client.stream("tokens=3") as stream:
        assert [delta.first_token for delta in stream] == [0, 1, 2, 3]
        assert stream.prompt is not None
    assert client.server_info().num_ready_workers == 1
    assert client.model().name == "fake-model"
    assert client.cluster().workers[0].device == "cpu"
    assert client.detokenize(client.tokenize(["é"])[0]) == "é"


def test_sampling_fields_may_be_given_one_by_one(client):
    assert client.generate("tokens=9", max_tokens=1).text == "base:0 "
    with pytest.raises(errors.InvalidArgument, match="max_tokens"):
        client.generate("tokens=9", SamplingParams(), max_tokens=1)
    with pytest.raises(TypeError, match="max_token"):
        client.stream("tokens=9", max_token=1)


def test_deltas_arrive_while_the_request_still_runs(client):
    with client.stream("endless", SamplingParams(max_tokens=10_000)) as stream:
        assert [next(stream).first_token for _ in range(3)] == [0, 1, 2]
        assert client.cancel(stream.request_id)
        *_, last = stream
    assert last.finish is not None
    assert last.finish.reason == "cancelled"


def test_closing_a_stream_ends_its_request(client):
    stream = client.stream("endless", SamplingParams(max_tokens=10_000))
    next(stream)
    stream.close()
    assert list(stream) == []


def test_an_adapter_is_registered_listed_and_removed(client, tmp_path):
    client.register_adapter("sync-one", adapter_folder(tmp_path, "one"))
    client.register_adapter("sync-two", tmp_path / "one")
    assert [adapter.name for adapter in client.list_adapters("sync-")] == ["sync-one", "sync-two"]
    assert client.generate("tokens=1", adapter="sync-one").text == "sync-one:0 "
    for name in ("sync-one", "sync-two"):
        client.unregister_adapter(name)
    with pytest.raises(errors.NotFound):
        client.get_adapter("sync-one")


def test_several_threads_share_one_client(client):
    def work(number):
        return client.generate(f"tokens={number}", SamplingParams(max_tokens=None)).sequences[0].token_ids

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(1, 41)))
    assert [len(answer) for answer in answers] == list(range(1, 41))


def test_several_clients_share_one_background_thread_and_the_last_ends_it(fake_server):
    first, second = Client(fake_server.target), Client(fake_server.target)
    assert _num_background_threads() == 1
    first.close()
    assert second.generate("tokens=1").text == "base:0 "
    second.close()
    second.close()
    assert _num_background_threads() == 0


def test_a_closed_client_says_so(fake_server):
    client = Client(fake_server.target)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("tokens=1")


def _num_background_threads():
    return sum(thread.name == "loraplex-client" for thread in threading.enumerate())
