"""Metrics as data, their bounded labels, and the endpoint that shows them."""

import asyncio
import http.client
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loraplex_contract.metrics import Kind, MetricSpec, MetricTable, doubling
from loraplex_contract.metrics_address import split_address
from loraplex_contract.metrics_endpoint import metrics_served
from loraplex_contract.top_labels import TopLabels

COUNT = MetricSpec(name="loraplex_things_total", kind=Kind.COUNTER, labels=("what",), help="Things.")
LEVEL = MetricSpec(name="loraplex_level", kind=Kind.GAUGE, help="A level.")
TIME = MetricSpec(name="loraplex_time_seconds", kind=Kind.HISTOGRAM, buckets=(0.1, 1.0), help="A time.")


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(address: str, path: str = "/metrics") -> tuple[int, str]:
    def get() -> tuple[int, str]:
        host, port = split_address(address)
        connection = http.client.HTTPConnection(host, port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(get)


async def test_what_was_counted_is_what_is_scraped():
    table = MetricTable((COUNT, LEVEL, TIME), constant={"engine": "0"})
    table.number("loraplex_things_total").add(2, "cats")
    table.number("loraplex_things_total").add(1, "cats")
    table.number("loraplex_level").set(7)
    for value in (0.1, 0.5, 3):
        table.histogram("loraplex_time_seconds").observe(value)
    with metrics_served("127.0.0.1:0", table.collect, process="test", name="t1") as address:
        status, text = await scrape(address)
    found = samples(text)
    engine = ("engine", "0")
    assert status == 200
    assert found["loraplex_things_total", frozenset({engine, ("what", "cats")})] == 3
    assert found["loraplex_level", frozenset({engine})] == 7
    for bound, count in (("0.1", 1), ("1.0", 2), ("+Inf", 3)):
        assert found["loraplex_time_seconds_bucket", frozenset({engine, ("le", bound)})] == count
    assert found["loraplex_time_seconds_sum", frozenset({engine})] == pytest.approx(3.6)
    assert any(name == "loraplex_build_info" for name, _ in found)
    assert any(name == "process_resident_memory_bytes" for name, _ in found)


async def test_a_metric_without_labels_is_there_before_anything_happened():
    table = MetricTable((LEVEL, TIME))
    with metrics_served("127.0.0.1:0", table.collect, process="test", name="t1") as address:
        found = samples((await scrape(address))[1])
    assert found["loraplex_level", frozenset()] == 0
    assert found["loraplex_time_seconds_count", frozenset()] == 0


async def test_numbers_are_copied_on_the_loop_and_nowhere_else():
    threads = []

    def collect() -> list:
        threads.append(threading.get_ident())
        return []

    with metrics_served("127.0.0.1:0", collect, process="test", name="t1") as address:
        await scrape(address)
    assert threads == [threading.get_ident()]


async def test_a_collector_that_raises_costs_one_scrape_and_nothing_more():
    results: list[list] = [[]]

    def collect() -> list:
        return results.pop()

    with metrics_served("127.0.0.1:0", collect, process="test", name="t1") as address:
        assert (await scrape(address))[0] == 200
        assert (await scrape(address))[0] == 503
        assert (await scrape(address, "/"))[0] == 404


async def test_without_an_address_nothing_is_served_or_started():
    before = threading.active_count()
    with metrics_served("", list, process="test", name="t1") as address:
        assert (address, threading.active_count()) == ("", before)


async def test_the_endpoint_leaves_no_thread_and_no_socket_behind():
    before = threading.active_count()
    with metrics_served("127.0.0.1:0", list, process="test", name="t1") as address:
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        await scrape(address)


async def test_an_address_that_is_taken_is_named_in_the_error():
    with (
        metrics_served("127.0.0.1:0", list, process="test", name="t1") as address,
        pytest.raises(OSError, match=f"metrics_listen={address}"),
        metrics_served(address, list, process="test", name="t2"),
    ):
        pass


@pytest.mark.parametrize("address", ["9100", "host", "host:", "host:x", "host:70000", ":1"])
def test_a_malformed_address_is_refused(address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address(address)


def test_a_series_that_a_gauge_no_longer_has_is_gone():
    gauge = MetricTable((MetricSpec(name="g", kind=Kind.GAUGE, labels=("w",), help="x"),)).number("g")
    gauge.replace({("a",): 1, ("b",): 2})
    gauge.replace({("b",): 3})
    assert gauge.copy() == {("b",): 3}


def test_doubling_bounds_cover_their_range():
    assert doubling(0.001, 0.01) == (0.001, 0.002, 0.004, 0.008, 0.016)


class TestTopLabels:
    def test_the_first_names_have_series_of_their_own_and_the_rest_share_one(self):
        top = TopLabels(2)
        assert [top.place((name,)) for name in ("a", "b", "c")] == [("a",), ("b",), ("other",)]

    def test_however_many_names_there_are_no_more_than_its_size_are_live(self):
        live: set[tuple[str, ...]] = set()
        top = TopLabels(4, live.remove)
        for number in range(50_000):
            live.add(top.place((f"adapter-{(number * number) % 997}",)))
            assert len(live - {("other",)}) <= 4

    def test_a_busy_newcomer_takes_the_place_of_an_idle_name_whose_series_are_dropped(self):
        dropped: list[tuple[str, ...]] = []
        top = TopLabels(2, dropped.append)
        for name in ("a", "b", "b", "b"):
            top.place((name,))
        assert [top.place(("c",)) for _ in range(3)] == [("other",), ("other",), ("c",)]
        assert dropped == [("a",)]
        assert top.label(("a",)) == ("other",)
        assert top.label(("b",)) == ("b",)
