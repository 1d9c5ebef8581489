import pytest

from loraplex_contract import ids


@pytest.mark.parametrize("name", ["a", "sql-v2", "0.x_y", "a" * 63])
def test_plain_names_are_names(name):
    assert ids.is_adapter_name(name)


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a" * 64, "a/b", "..", "a\n", "a b", "ä", "a\0"])
def test_what_could_be_a_path_or_break_a_log_is_no_name(name):
    assert not ids.is_adapter_name(name)


@pytest.mark.parametrize("version", ["1", "42", "f" * 64])
def test_numbers_and_digests_are_versions(version):
    assert ids.is_version(version)


@pytest.mark.parametrize("version", ["", "0", "01", "-1", "F" * 64, "f" * 63, "v1", "1\n"])
def test_anything_else_is_no_version(version):
    assert not ids.is_version(version)


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a b", "tab\t", "é"])
def test_request_ids_are_bounded_visible_ascii(request_id):
    assert not ids.is_request_id(request_id)
    assert ids.is_request_id("0191-a.B/c")
