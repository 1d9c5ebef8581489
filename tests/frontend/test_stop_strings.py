"""Stop strings against the reference: read character by character, end at the first one that is complete."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex_frontend.text.stop_strings import StopMatcher, StopStrings

TEXT = st.text(alphabet="abcé🦊", max_size=40)
STOPS = st.lists(st.text(alphabet="abcé🦊", min_size=1, max_size=5), min_size=1, max_size=4)


def reference(text: str, stops: list[str], *, include: bool, first_allowed: int = 0) -> tuple[str, str | None, int]:
    """(text, stop string, characters read): the specification, quadratic and plain."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found and end > first_allowed:
            longest = max(found, key=len)
            return text[:end] if include else text[: end - len(longest)], longest, end
    return text, None, len(text)


def run(text: str, stops: list[str], pieces: list[int], *, include: bool) -> tuple[str, str | None, list[str]]:
    matcher = StopMatcher(StopStrings(stops), include_stop_string=include)
    released, start = [], 0
    for size in [*pieces, len(text)]:
        piece = text[start : start + size]
        start += size
        release = matcher.push(piece)
        released.append(release.text)
        if release.stop_string is not None:
            return "".join(released), release.stop_string, released
    released.append(matcher.flush())
    return "".join(released), None, released


@settings(max_examples=400, deadline=None)
@given(text=TEXT, stops=STOPS, pieces=st.lists(st.integers(0, 4), max_size=20), include=st.booleans())
def test_the_text_is_cut_where_the_reference_cuts_however_it_comes_in_pieces(text, stops, pieces, include):
    wanted, stop, _ = reference(text, stops, include=include)
    found, found_stop, _ = run(text, stops, pieces, include=include)
    assert (found, found_stop) == (wanted, stop)
    if not include:
        assert not any(string in found for string in stops)


@settings(max_examples=300, deadline=None)
@given(text=TEXT, stops=STOPS, pieces=st.lists(st.integers(0, 3), max_size=20))
def test_exactly_what_could_still_become_a_stop_string_is_held_back(text, stops, pieces):
    matcher = StopMatcher(StopStrings(stops), include_stop_string=False)
    sent, seen, start = "", "", 0
    for size in pieces:
        piece = text[start : start + size]
        start, seen = start + size, seen + piece
        release = matcher.push(piece)
        sent += release.text
        if release.stop_string is not None:
            return
        held = seen[len(sent) :]
        prefixes = {stop[:length] for stop in stops for length in range(1, len(stop))}
        longest = max((len(prefix) for prefix in prefixes if seen.endswith(prefix)), default=0)
        assert len(held) == longest


@settings(max_examples=300, deadline=None)
@given(text=TEXT, stops=STOPS, allowed=st.integers(0, 20), include=st.booleans())
def test_before_min_tokens_a_stop_string_is_let_through(text, stops, allowed, include):
    wanted, stop, _ = reference(text, stops, include=include, first_allowed=allowed)
    matcher = StopMatcher(StopStrings(stops), include_stop_string=include)
    parts, found = [], None
    for position, char in enumerate(text, 1):
        release = matcher.push(char, can_stop=position > allowed)
        parts.append(release.text)
        if release.stop_string is not None:
            found = release.stop_string
            break
    else:
        parts.append(matcher.flush())
    assert ("".join(parts), found) == (wanted, stop)


@pytest.mark.parametrize(
    ("text", "stops", "wanted", "stop"),
    [
        ("one END two", ["END"], "one ", "END"),
        ("aab", ["ab", "aab"], "", "aab"),
        ("abcde", ["bcd", "abcdef"], "a", "bcd"),
        ("ENEND", ["END"], "EN", "END"),
        ("EN", ["END"], "EN", None),
        ("🦊🦊!", ["🦊!"], "🦊", "🦊!"),
    ],
)
def test_examples(text, stops, wanted, stop):
    assert run(text, stops, [1] * len(text), include=False)[:2] == (wanted, stop)


def test_a_long_stop_string_of_one_character_does_not_make_the_text_slow():
    matcher = StopMatcher(StopStrings(["a" * 256]), include_stop_string=False)
    assert "".join(matcher.push("a" * 255 + "b").text for _ in range(100)) == ("a" * 255 + "b") * 100
