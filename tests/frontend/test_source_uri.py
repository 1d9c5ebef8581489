"""Uris of sources are read one way only, and what could be read another way is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_contract.errors import InvalidArgument
from loraplex_frontend.sources.allow_list import AllowList
from loraplex_frontend.sources.source_uri import SourceUri, parse_source_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/repo", SourceUri(scheme="hf", authority="org", path=("repo",))),
        (
            "hf://org/repo@refs%2Fpr%2F1/a",
            SourceUri(scheme="hf", authority="org", path=("repo", "a"), revision="refs/pr/1"),
        ),
        ("s3://bucket/a%20b/c/", SourceUri(scheme="s3", authority="bucket", path=("a b", "c"))),
        ("gs://bucket", SourceUri(scheme="gs", authority="bucket")),
        ("https://Models.Example.COM:443/x", SourceUri(scheme="https", authority="models.example.com", path=("x",))),
        ("http://[::1]:8080/x", SourceUri(scheme="http", authority="::1", port=8080, path=("x",))),
    ],
)  # fmt: skip
def test_a_uri_is_taken_apart_and_written_again(uri, expected):
    parsed = parse_source_uri(uri)
    assert parsed == expected
    assert parse_source_uri(parsed.text) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "http://", "http:///x", "https://user@host/x", "https://user:pass@host/x", "http://a\\@b/x", "http://host\\x",
        "http://host/x?y", "http://host/x#y", "http://host:0/x", "http://host:99999/x", "http://host:x/", "http://-h/",
        "http://ho st/x", "http://host/\x00", "http://host/%00", "http://host/a/../b", "http://host/%2e%2e/b",
        "http://host/a%2fb", "http://host/a%5cb", "http://host//x", "http://host/%ff", "http://hóst/x", "HTTP://host/x",
        "http://[::1/x", "http://[fe80::1%eth0]/x", "s3://", "s3:///x", "s3://b/./x", "s3://b/a//c", "s3://u@b/x",
        "hf://org", "hf://org/", "hf://org/repo@", "hf://org/repo@../x", "hf://org/repo@a b", "hf://org/re%2fpo",
        "ftp://host/x", "gopher://host", "file://host/x", "", "x", "://", "http://" + "a" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_such_uri_or_has_a_second_reading_is_refused(uri):
    with pytest.raises(InvalidArgument) as caught:
        parse_source_uri(uri)
    assert caught.value.reason == "SOURCE_INVALID"
    assert "pass" not in caught.value.message


@given(st.text(max_size=60) | st.from_regex(r"(hf|s3|gs|az|https?)://[!-~]{0,40}", fullmatch=True))
def test_any_text_is_refused_or_is_the_same_source_when_it_is_written_again(text):
    try:
        parsed = parse_source_uri(text)
    except InvalidArgument:
        return
    assert parse_source_uri(parsed.text) == parsed
    assert not {"", ".", ".."}.intersection(parsed.path)
    assert not any("/" in segment or "\\" in segment for segment in parsed.path)


@pytest.mark.parametrize(
    ("prefix", "covered", "not_covered"),
    [
        ("https://a.example/x", "https://A.example:443/x/y", "https://a.example/xy"),
        ("https://a.example", "https://a.example/anything", "https://a.example.evil.test/x"),
        ("https://a.example", "https://a.example/x", "http://a.example/x"),
        ("http://a.example:8080", "http://a.example:8080/x", "http://a.example/x"),
        ("https://", "https://b.example/x", "s3://b/x"),
        ("s3://b/team", "s3://b/team/sql", "s3://b/teams/sql"),
        ("hf://org", "hf://org/repo@v1/a", "hf://org2/repo"),
        ("hf://org/repo@v1", "hf://org/repo@v1", "hf://org/repo@v2"),
    ],
)
def test_an_entry_of_the_allow_list_covers_what_lies_below_it_and_no_neighbour(prefix, covered, not_covered):
    allowed = AllowList([prefix])
    assert allowed.covers(parse_source_uri(covered))
    assert not allowed.covers(parse_source_uri(not_covered))
