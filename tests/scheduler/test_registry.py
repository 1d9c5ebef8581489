"""The registry on disk: what is acknowledged stays, what is not allowed changes nothing."""

import asyncio
import dataclasses
import subprocess
import sys

import pytest

from loraplex_contract.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from loraplex_scheduler.registry import Registry
from loraplex_scheduler.registry_entry import EntryState, NewVersion


def url(folder) -> str:
    return f"sqlite:///{folder / 'registry.sqlite'}"


def new(name: str = "poet", digest: str = "a" * 64, **fields) -> NewVersion:
    given = {"tenant": "red", "num_bytes": 1, "num_parameters": 2, "report_json": "{}", "labels": {}}
    return NewVersion(name=name, digest=digest, **{**given, **fields})


async def test_the_same_digest_again_changes_nothing(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        first = await registry.commit(new())
        assert await registry.commit(new()) == first
        assert first.current.number == 1


async def test_another_digest_needs_leave_and_becomes_the_next_version(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        before = await registry.commit(new())
        with pytest.raises(AlreadyExists) as caught:
            await registry.commit(new(digest="b" * 64))
        assert caught.value.reason == "ADAPTER_EXISTS"
        assert await registry.get("red", "poet") == before
        after = await registry.commit(new(digest="b" * 64, allow_update=True))
        assert [(v.number, v.digest[0]) for v in after.versions] == [(1, "a"), (2, "b")]
        assert after.revision > before.revision


async def test_tenants_do_not_see_each_other_s_names(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new())
        with pytest.raises(NotFound):
            await registry.get("blue", "poet")
        page = await registry.list_page("blue", page_size=0, page_token="", name_prefix="", states=[])
        assert page.entries == ()


async def test_a_draining_name_takes_no_version_and_is_gone_after_delete(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new())
        assert (await registry.start_draining("red", "poet")).state is EntryState.DRAINING
        with pytest.raises(FailedPrecondition) as caught:
            await registry.commit(new())
        assert caught.value.reason == "ADAPTER_DRAINING"
        assert await registry.delete("red", "poet") == ["a" * 64]
        with pytest.raises(NotFound):
            await registry.get("red", "poet")
        assert await registry.delete("red", "poet") == []


async def test_a_second_answer_to_an_unregistration_spares_a_name_registered_anew(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new())
        await registry.start_draining("red", "poet")
        await registry.delete("red", "poet")
        anew = await registry.commit(new())
        assert await registry.delete("red", "poet") == []
        assert await registry.get("red", "poet") == anew


async def test_a_digest_that_another_name_points_at_is_still_referenced(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new("one"))
        await registry.commit(new("two", tenant="blue"))
        await registry.start_draining("red", "one")
        assert await registry.delete("red", "one") == []


async def test_pages_cover_every_name_once_in_order(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        names = [f"adapter-{number:02}" for number in range(7)]
        for name in reversed([*names, "other"]):
            await registry.commit(new(name))
        seen, token = [], ""
        for _ in range(10):
            page = await registry.list_page("red", page_size=3, page_token=token, name_prefix="adapter-", states=[])
            seen += [entry.name for entry in page.entries]
            token = page.next_page_token
            if not token:
                break
        assert seen == names


@pytest.mark.parametrize("change", [{"page_size": 1001}, {"page_token": "%%%"}, {"page_token": "a"}])
async def test_a_bad_page_is_refused(tmp_path, change):
    async with Registry(url(tmp_path)) as registry:
        given = {"page_size": 1, "page_token": "", "name_prefix": "", "states": []}
        with pytest.raises(InvalidArgument):
            await registry.list_page("red", **{**given, **change})


async def test_a_prefix_is_text_and_no_pattern(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new("poet"))
        for pattern in ("%", "p_et"):
            page = await registry.list_page("red", page_size=5, page_token="", name_prefix=pattern, states=[])
            assert page.entries == ()


async def test_everything_is_there_after_a_restart(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new("one", labels={"team": "x"}, report_json='{"rank": 4}'))
        await registry.commit(new("one", digest="b" * 64, allow_update=True))
        await registry.commit(new("two"))
        await registry.start_draining("red", "two")
        before = await registry.load_all()
    async with Registry(url(tmp_path)) as registry:
        assert await registry.load_all() == before
        assert [(entry.name, entry.state) for entry in before] == [
            ("one", EntryState.READY),
            ("two", EntryState.DRAINING),
        ]


async def test_terms_grow_over_restarts(tmp_path):
    terms = []
    for _ in range(3):
        async with Registry(url(tmp_path)) as registry:
            terms.append(await registry.begin_term())
    assert terms == [1, 2, 3]


async def test_commits_at_the_same_time_leave_one_winner(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(attempt(registry, letter)) for letter in "abcdef"]
        won = [task.result() for task in running if task.result()]
        assert len(won) == 1
        assert (await registry.get("red", "poet")).current.digest[0] == won[0]


async def attempt(registry: Registry, letter: str) -> str:
    try:
        return (await registry.commit(new(digest=letter * 64))).current.digest[0]
    except AlreadyExists:
        return ""


WRITER = """
import asyncio, sys
from loraplex_scheduler.registry import Registry
from tests.scheduler.test_registry import new
async def main():
    async with Registry(sys.argv[1]) as registry:
        for number in range(100_000):
            await registry.commit(new(f"adapter-{number}"))
            print(number, flush=True)
asyncio.run(main())
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer.stdout as lines:
        try:
            acknowledged = [int(lines.readline()) for _ in range(25)]
        finally:
            writer.kill()
            writer.wait(10)
        acknowledged += [int(line) for line in lines.read().splitlines() if line.isdigit()]

    async def names() -> set[str]:
        async with Registry(url(tmp_path)) as registry:
            return {entry.name for entry in await registry.load_all()}

    assert {f"adapter-{number}" for number in acknowledged} <= asyncio.run(names())


def test_values_that_cross_the_registry_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        new().name = "other"  # type: ignore[misc]
