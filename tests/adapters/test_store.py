"""The store shows whole versions or none, whatever fails, and never serves bytes that are not what was put."""

import os
import threading
from pathlib import Path

import pytest
from tests.adapters.adapter_folder import BASE, config, lora_tensors, write_folder

from loraplex_adapters.ingest import ingest
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import Module
from loraplex_adapters.peft_folder import ParsedAdapter, parse_peft_folder
from loraplex_adapters.spec import AdapterSpec
from loraplex_adapters.store import AdapterStore
from loraplex_contract.errors import DataLoss, InvalidArgument, NotFound


@pytest.fixture
def store(tmp_path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path) -> Path:
    modules = [Module.Q_PROJ, Module.DOWN_PROJ, Module.EMBED_TOKENS, Module.LM_HEAD]
    document = config(target_modules=[module.value for module in modules], base_model_name_or_path="a/base")
    return write_folder(tmp_path / "source", document=document, tensors=lora_tensors(*modules))


@pytest.fixture
def spec(source, store) -> AdapterSpec:
    """The spec of an adapter that is not yet in the store."""
    return ingest(source, base=BASE, store=store, limits=Limits(), validate_only=True).spec


@pytest.fixture
def parsed(source) -> ParsedAdapter:
    return parse_peft_folder(source, BASE, Limits())


def _version(store: AdapterStore, spec: AdapterSpec) -> Path:
    return store._root / spec.digest[:2] / spec.digest


def test_what_is_put_comes_back_bit_for_bit(store, spec, parsed):
    store.put(spec, parsed.tensors)
    assert store.read_spec(spec.digest) == spec
    assert store.read_tensors(spec.digest) == parsed.tensors
    assert store.digests() == (spec.digest,)
    assert {path.name for path in _version(store, spec).iterdir()} == {"spec.json", "adapter.safetensors"}


def test_ingest_reports_and_stores(store, source, spec):
    report = ingest(source, base=BASE, store=store, limits=Limits())
    assert report.spec == spec == store.read_spec(spec.digest)
    assert report.is_stored
    assert sum(site.num_bytes for site in report.sites) == spec.num_bytes
    assert [site.key for site in report.sites][-2:] == ["embed_tokens", "lm_head"]
    assert {(site.rank, site.scale, site.dtype) for site in report.sites} == {(4, 2.0, "F32")}


def test_validate_only_stores_nothing(store, spec):
    assert not store.has(spec.digest)
    assert store.digests() == ()


def test_a_version_survives_a_new_store_object(store, spec, parsed):
    store.put(spec, parsed.tensors)
    assert AdapterStore(store._root).read_spec(spec.digest) == spec


def test_putting_the_same_version_twice_changes_nothing(store, spec, parsed):
    store.put(spec, parsed.tensors)
    before = (_version(store, spec) / "spec.json").stat()
    store.put(spec, parsed.tensors)
    assert (_version(store, spec) / "spec.json").stat().st_ino == before.st_ino


def test_concurrent_puts_of_one_version_all_succeed(store, spec, parsed):
    barrier, errors = threading.Barrier(4), []

    def put() -> None:
        barrier.wait(timeout=10)
        try:
            AdapterStore(store._root).put(spec, parsed.tensors)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert errors == []
    assert store.read_tensors(spec.digest) == parsed.tensors
    assert list((store._root / ".tmp").iterdir()) == []


def test_put_refuses_tensors_that_are_not_the_specs(store, spec, parsed):
    name = "embed_tokens.A"
    damaged = parsed.tensors[name]._replace(data=b"\1" + parsed.tensors[name].data[1:])
    with pytest.raises(ValueError, match="digest"):
        store.put(spec, {**parsed.tensors, name: damaged})
    assert store.digests() == ()


@pytest.mark.parametrize("function", ["fsync", "rename", "open"])
@pytest.mark.parametrize("nth", range(1, 8))
def test_a_put_that_fails_at_any_step_shows_a_whole_version_or_none(store, spec, parsed, monkeypatch, function, nth):
    calls = 0
    real = getattr(os, function)

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing)
        try:
            store.put(spec, parsed.tensors)
        except OSError:
            assert calls >= nth, "failed for another reason"
        else:
            assert calls < nth, "the failure was swallowed"
    if store.has(spec.digest):
        assert store.read_tensors(spec.digest) == parsed.tensors
    store.put(spec, parsed.tensors)
    assert store.read_tensors(spec.digest) == parsed.tensors


class _Killed(BaseException):
    """Stands for SIGKILL: no handler of the store may clean up after it."""


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_writer_that_dies_leaves_only_rubbish_that_a_later_sweep_removes(store, spec, parsed, monkeypatch, nth):
    calls = 0
    real = os.fsync

    def dying(fd):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise _Killed
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying)
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        with pytest.raises(_Killed):
            store.put(spec, parsed.tensors)
    temporary = store._root / ".tmp"
    assert store.has(spec.digest) == (not list(temporary.iterdir()))
    for entry in temporary.iterdir():
        AdapterStore(store._root)
        assert entry.exists(), "a young folder may belong to a live writer"
        os.utime(entry, (0, 0))
    AdapterStore(store._root)
    assert list(temporary.iterdir()) == []
    store.put(spec, parsed.tensors)
    assert store.read_tensors(spec.digest) == parsed.tensors


@pytest.mark.parametrize("name", ["spec.json", "adapter.safetensors"])
def test_any_flipped_byte_in_the_store_is_data_loss(store, spec, parsed, name):
    store.put(spec, parsed.tensors)
    path = _version(store, spec) / name
    good = path.read_bytes()
    start = good.index(b"base_model_name") if name == "spec.json" else 0
    free = range(start, good.index(b"digest")) if name == "spec.json" else range(0)
    for position in range(0, len(good), 41):
        if position in free:
            continue  # the base model's name is for people and not part of the digest
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with pytest.raises(DataLoss) as caught:
            store.read_tensors(spec.digest)
        assert caught.value.reason == "ARTIFACT_CORRUPT"
        assert str(store._root) not in caught.value.message


@pytest.mark.parametrize("name", ["spec.json", "adapter.safetensors"])
def test_a_missing_cut_or_replaced_file_is_data_loss(store, spec, parsed, name):
    store.put(spec, parsed.tensors)
    path = _version(store, spec) / name
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(DataLoss):
        store.read_tensors(spec.digest)
    path.unlink()
    with pytest.raises(DataLoss):
        store.read_tensors(spec.digest)
    os.mkfifo(path)
    with pytest.raises(DataLoss):
        store.read_tensors(spec.digest)


def test_putting_a_version_again_heals_a_damaged_copy(store, spec, parsed):
    store.put(spec, parsed.tensors)
    (_version(store, spec) / "adapter.safetensors").write_bytes(b"rot")
    store.put(spec, parsed.tensors)
    assert store.read_tensors(spec.digest) == parsed.tensors


def test_a_version_under_another_digest_is_data_loss(store, spec, parsed):
    store.put(spec, parsed.tensors)
    other = "f" * 64
    (store._root / "ff").mkdir()
    _version(store, spec).rename(store._root / "ff" / other)
    with pytest.raises(DataLoss):
        store.read_spec(other)


def test_delete_removes_the_version_at_once(store, spec, parsed):
    store.put(spec, parsed.tensors)
    assert store.delete(spec.digest)
    assert not store.has(spec.digest)
    assert store.digests() == ()
    assert not store.delete(spec.digest)
    with pytest.raises(NotFound):
        store.read_tensors(spec.digest)


def test_a_delete_that_cannot_free_the_bytes_still_hides_the_version(store, spec, parsed, monkeypatch):
    store.put(spec, parsed.tensors)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
    store.delete(spec.digest)
    assert not store.has(spec.digest)
    assert store.digests() == ()


@pytest.mark.parametrize(
    "digest", ["", "..", "../" * 21 + "x", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 65, "/" * 64]
)
def test_what_is_no_digest_never_touches_a_path(store, digest):
    for method in (store.has, store.read_spec, store.read_tensors, store.delete):
        with pytest.raises(InvalidArgument):
            method(digest)


def test_an_unknown_digest_is_not_found(store):
    with pytest.raises(NotFound):
        store.read_spec("0" * 64)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"digest": 1}', "[" * 100_000],
)
def test_a_spec_that_is_none_is_data_loss(text):
    with pytest.raises(DataLoss):
        AdapterSpec.from_json(text)


def test_a_spec_comes_back_from_json_bit_for_bit(spec):
    assert AdapterSpec.from_json(spec.to_json()) == spec
