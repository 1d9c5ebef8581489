"""Settings: four sources in order, and nothing unknown goes unnoticed."""

import pytest
from pydantic import Field

from loraplex_contract.settings import ProcessSettings, SettingsError


class Sample(ProcessSettings):
    """A sample process."""

    process = "sample"

    listen: str = "127.0.0.1:1"
    """Where to listen."""
    max_queue: int = Field(default=10, ge=1)
    """Longest queue."""
    roots: tuple[str, ...] = ()
    """Folders."""


def test_defaults_hold_where_nothing_is_given():
    assert Sample.load() == Sample(listen="127.0.0.1:1", max_queue=10)


def test_file_then_environment_then_flags(tmp_path, monkeypatch):
    config = tmp_path / "loraplex.toml"
    config.write_text('[sample]\nlisten = "file:1"\nmax_queue = 2\nroots = ["/file"]\n[other]\nx = 1\n')
    monkeypatch.setenv("LORAPLEX_CONFIG", str(config))
    monkeypatch.setenv("LORAPLEX_SAMPLE__MAX_QUEUE", "3")
    monkeypatch.setenv("LORAPLEX_SAMPLE__LISTEN", "env:1")
    assert Sample.load(["--listen", "flag:1"]) == Sample(listen="flag:1", max_queue=3, roots=("/file",))


def test_a_flag_may_repeat_for_a_list():
    assert Sample.load(["--roots", "/a", "--roots", "/b"]).roots == ("/a", "/b")


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path, monkeypatch):
    config = tmp_path / "loraplex.toml"
    config.write_text("[sample]\nmax_qeue = 2\n")
    monkeypatch.setenv("LORAPLEX_CONFIG", str(config))
    with pytest.raises(SettingsError, match=r"'max_qeue'; known: listen, max_queue, roots"):
        Sample.load()


def test_an_unknown_variable_is_refused(monkeypatch):
    monkeypatch.setenv("LORAPLEX_SAMPLE__NOPE", "1")
    with pytest.raises(SettingsError, match="'nope'"):
        Sample.load()


def test_a_value_out_of_bounds_names_the_key_and_the_bound():
    with pytest.raises(SettingsError, match=r"'max_queue' = '0'.*greater than or equal to 1"):
        Sample.load(["--max-queue", "0"])


def test_an_unknown_flag_ends_the_program(capsys):
    with pytest.raises(SystemExit) as stop:
        Sample.load(["--bogus", "1"])
    assert stop.value.code == 2
    assert "--bogus" in capsys.readouterr().err
