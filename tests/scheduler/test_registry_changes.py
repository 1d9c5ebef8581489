"""What may be changed of a name, by whom, and what a repetition does."""

import sqlite3

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from loraplex_contract.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from loraplex_scheduler.registry import Registry
from loraplex_scheduler.registry_entry import EntryChange, EntryState, RequestIdentity
from loraplex_scheduler.registry_pages import page_query
from tests.scheduler.test_registry import new, url

A, B = "a" * 64, "b" * 64


def change(*fields: str, **given) -> EntryChange:
    return EntryChange(**{"tenant": "red", "name": "poet", "fields": frozenset(fields), **given})


def identity(request_id: str = "r1", fingerprint: str = "f" * 64) -> RequestIdentity:
    return RequestIdentity(request_id=request_id, fingerprint=fingerprint)


async def test_only_the_named_fields_change(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        before = await registry.commit(new(labels={"team": "x"}, description="old", expires_ns=5))
        after = await registry.change(change("description", description="new", labels={"team": "y"}))
        assert (after.description, after.labels, after.expires_ns) == ("new", {"team": "x"}, 5)
        assert after.revision > before.revision
        never = await registry.change(change("expire_time", "labels", labels={}))
        assert (never.expires_ns, never.labels, never.current) == (None, {}, before.current)


async def test_a_change_of_what_somebody_else_has_changed_is_aborted_and_changes_nothing(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        read = await registry.commit(new())
        now = await registry.change(change("description", description="first", expected_revision=read.revision))
        lost = [
            lambda: registry.change(change("description", description="second", expected_revision=read.revision)),
            lambda: registry.commit(new(digest=B, allow_update=True, expected_revision=read.revision)),
            lambda: registry.start_draining("red", "poet", expected_revision=read.revision),
        ]
        for attempt in lost:
            with pytest.raises(Aborted) as caught:
                await attempt()
            assert caught.value.reason == "ETAG_MISMATCH"
            assert caught.value.metadata["etag"] == str(now.revision)
        assert await registry.get("red", "poet") == now


async def test_an_update_never_makes_a_name(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        for attempt in (registry.change(change("labels")), registry.commit(new(must_exist=True, allow_update=True))):
            with pytest.raises(NotFound):
                await attempt
        assert await registry.load_all() == []


async def test_a_draining_name_takes_no_change(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new())
        await registry.start_draining("red", "poet")
        with pytest.raises(FailedPrecondition):
            await registry.change(change("labels"))


async def test_a_request_that_comes_twice_is_carried_out_once(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new(identity=identity()))
        moved = await registry.commit(new(digest=B, allow_update=True))
        assert await registry.commit(new(identity=identity())) == moved, "it does not move the name back"
        with pytest.raises(AlreadyExists) as caught:
            await registry.commit(new(identity=identity(fingerprint="0" * 64)))
        assert caught.value.reason == "REQUEST_ID_REUSED"
        assert not await registry.is_done("blue", identity()), "ids are each tenant's own"


async def test_a_repeated_request_for_a_name_that_is_gone_does_not_bring_it_back(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new(identity=identity()))
        await registry.start_draining("red", "poet", identity=identity("r2"))
        await registry.delete("red", "poet")
        with pytest.raises(NotFound):
            await registry.commit(new(identity=identity()))
        assert await registry.is_done("red", identity("r2"))


async def test_request_ids_are_forgotten_after_a_day(tmp_path):
    now_ns = [1]
    async with Registry(url(tmp_path), clock=lambda: now_ns[0]) as registry:
        await registry.commit(new(identity=identity()))
        now_ns[0] += 25 * 3600 * 10**9
        assert not await registry.is_done("red", identity())
        await registry.commit(new("other", identity=identity("r2")))
        async with Registry(url(tmp_path)):
            pass
    with sqlite3.connect(tmp_path / "registry.sqlite") as connection:
        rows = connection.execute("SELECT request_id FROM requests").fetchall()
    connection.close()
    assert rows == [("r2",)]


async def test_revisions_grow_over_restarts_and_over_names_that_are_made_anew(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        seen = [(await registry.commit(new())).revision, await registry.next_revision()]
        await registry.start_draining("red", "poet")
        await registry.delete("red", "poet")
        seen.append((await registry.commit(new())).revision)
    async with Registry(url(tmp_path)) as registry:
        assert registry.revision >= seen[-1]
        seen.append((await registry.commit(new("other"))).revision)
    assert seen == sorted(set(seen)), "an etag never comes back"


# --- bytes that nothing points at ---


async def unreferenced(registry: Registry, digest: str = A) -> None:
    await registry.commit(new(digest=digest))
    await registry.start_draining("red", "poet")
    assert await registry.delete("red", "poet") == [digest]


async def test_garbage_is_claimed_by_one_and_confirmed_once(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await unreferenced(registry)
        claim = await registry.claim_garbage([A])
        assert claim.digests == (A,)
        assert (await registry.claim_garbage()).digests == ()
        await registry.confirm_deleted(claim.number, [A])
        assert (await registry.claim_garbage()).digests == ()


async def test_a_claim_whose_holder_died_passes_to_another(tmp_path):
    now_ns = [1]
    async with Registry(url(tmp_path), clock=lambda: now_ns[0]) as registry:
        await unreferenced(registry)
        dead = await registry.claim_garbage()
        now_ns[0] += 121 * 10**9
        again = await registry.claim_garbage()
        assert again.digests == (A,)
        await registry.confirm_deleted(dead.number, [A])
        sequence = await registry.store_sequence()
        with pytest.raises(Aborted):
            await registry.commit(new(store_sequence=sequence))


async def test_a_commit_that_looked_at_the_store_before_a_claim_begins_again(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await unreferenced(registry)
        before = await registry.store_sequence()
        claim = await registry.claim_garbage([A])
        for sequence in (before, claim.number):
            with pytest.raises(Aborted) as caught:
                await registry.commit(new(store_sequence=sequence))
            assert caught.value.reason == "STORE_CHANGED"
        await registry.confirm_deleted(claim.number, [A])
        with pytest.raises(Aborted):
            await registry.commit(new(store_sequence=before))
        await registry.commit(new(store_sequence=await registry.store_sequence()))


async def test_a_digest_that_is_named_again_is_no_garbage(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await unreferenced(registry)
        await registry.commit(new("other", store_sequence=await registry.store_sequence()))
        assert (await registry.claim_garbage()).digests == ()


async def test_garbage_of_a_version_that_was_replaced_goes_with_its_name(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new())
        await registry.commit(new(digest=B, allow_update=True))
        await registry.commit(new("other", digest=B))
        await registry.start_draining("red", "poet")
        assert await registry.delete("red", "poet") == [A]


# --- lists ---


async def test_labels_select_and_all_must_hold(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new("one", labels={"team": "x", "tier": "gold"}))
        await registry.commit(new("two", labels={"team": "x"}))
        await registry.commit(new("two-b", tenant="blue", labels={"team": "x"}))

        async def names(**labels: str) -> list[str]:
            page = await registry.list_page(
                "red", page_size=9, page_token="", name_prefix="", states=[EntryState.READY], labels=labels
            )
            return [entry.name for entry in page.entries]

        assert await names(team="x") == ["one", "two"]
        assert await names(team="x", tier="gold") == ["one"]
        await registry.change(change("labels", name="one", labels={"team": "y"}))
        assert await names(team="x") == ["two"]
        await registry.start_draining("red", "two")
        await registry.delete("red", "two")
        assert await names(team="x") == []


async def test_lists_leave_the_reports_on_disk(tmp_path):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new(report_json="long", summary=b"short"))
        page = await registry.list_page("red", page_size=9, page_token="", name_prefix="", states=[])
        assert [(e.current.report_json, e.current.summary) for e in page.entries] == [("", b"short")]
        assert (await registry.get("red", "poet")).current.report_json == "long"


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "sqlite_autoindex_adapters_1 (tenant=? AND name>?"),
        ({"name_prefix": "a"}, "sqlite_autoindex_adapters_1 (tenant=? AND name>? AND name<?"),
        ({"states": [EntryState.READY]}, "sqlite_autoindex_adapters_1 (tenant=? AND name>?"),
        ({"labels": {"team": "x"}}, "sqlite_autoindex_labels_1 (tenant=? AND key=? AND value=?"),
    ],
)
async def test_a_page_is_found_by_an_index_and_needs_no_sort(tmp_path, filters, index):
    async with Registry(url(tmp_path)) as registry:
        await registry.commit(new())
    given = {"after": "", "name_prefix": "", "states": [], "labels": {}, **filters}
    query = page_query("red", **given).limit(51)
    text = str(query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
    engine = sa.create_engine(url(tmp_path))
    with engine.connect() as connection:
        plan = [row[3] for row in connection.execute(sa.text(f"EXPLAIN QUERY PLAN {text}"))]
    engine.dispose()
    assert any(index in step for step in plan), plan
    assert not any("SCAN" in step or "TEMP B-TREE" in step for step in plan), plan


OLD_SCHEMA = """
CREATE TABLE adapters (tenant VARCHAR(128) NOT NULL, name VARCHAR(63) NOT NULL, state VARCHAR(16) NOT NULL,
  labels TEXT NOT NULL, revision BIGINT NOT NULL, created_ns BIGINT NOT NULL, updated_ns BIGINT NOT NULL,
  PRIMARY KEY (tenant, name));
CREATE TABLE versions (tenant VARCHAR(128) NOT NULL, name VARCHAR(63) NOT NULL, number BIGINT NOT NULL,
  digest VARCHAR(64) NOT NULL, num_bytes BIGINT NOT NULL, num_parameters BIGINT NOT NULL, report TEXT NOT NULL,
  created_ns BIGINT NOT NULL, PRIMARY KEY (tenant, name, number));
INSERT INTO adapters VALUES ('red', 'poet', 'READY', '{"team": "x"}', 7, 1, 2);
INSERT INTO versions VALUES ('red', 'poet', 1, 'aa', 3, 4, '{}', 1);
"""


async def test_a_database_of_the_first_release_is_taken_over_whole(tmp_path):
    connection = sqlite3.connect(tmp_path / "registry.sqlite")
    connection.executescript(OLD_SCHEMA)
    connection.close()
    for _ in range(2):
        async with Registry(url(tmp_path)) as registry:
            (entry,) = await registry.load_all()
            assert (entry.description, entry.expires_ns, entry.current.summary) == ("", None, b"")
            page = await registry.list_page(
                "red", page_size=9, page_token="", name_prefix="", states=[], labels={"team": "x"}
            )
            assert [found.name for found in page.entries] == ["poet"]
            assert registry.revision >= 7
