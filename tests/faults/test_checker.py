"""The checker of recorded histories can fail: each way in which a history can be broken is flagged by its name."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.faults.checker import COMPLETE, FAILED, Fault, Golden, Losses, PoisonRule, faults
from tests.faults.history import Accepted, Frame, History, Started, Submission, Terminal, Tokens

DIGEST = "ab" * 32
POISON = PoisonRule(error_reason="REQUEST_POISONED", min_losses=2)
SUBMISSION = Submission(prompt="Hello", adapter="alpha", max_tokens=6, temperature=0.0, top_k=0, seed=7)
GOLDEN = Golden(token_ids=(11, 12, 13, 14, 15, 16), text="abcdef", adapters=(("alpha", DIGEST),))

ACCEPTED = Accepted(at_ns=10)
STARTED = Started(at_ns=20, adapters=GOLDEN.adapters, seed=7)
END = Terminal(at_ns=90, reason=COMPLETE, num_output_tokens=6)


def tokens(first: int, *ids: int, at_ns: int = 0, text: str | None = None) -> Tokens:
    text = GOLDEN.text[first : first + len(ids)] if text is None else text
    return Tokens(at_ns=at_ns or 30 + first, first_token=first, token_ids=ids, num_tokens=len(ids), text=text)


FIRST, SECOND, THIRD = tokens(0, 11, 12), tokens(2, 13), tokens(3, 14, 15, 16)
VALID = (ACCEPTED, STARTED, FIRST, SECOND, THIRD, END)
GIVEN_UP = Terminal(at_ns=90, reason=FAILED, error_reason="REQUEST_POISONED", num_output_tokens=3)
POISONED = (ACCEPTED, STARTED, FIRST, SECOND, GIVEN_UP)


def history(*frames: Frame, submission: Submission = SUBMISSION) -> History:
    return History(submission=submission, submitted_ns=5, frames=frames)


def found(*frames: Frame, losses: tuple[int, ...] = (40, 80), golden: Golden = GOLDEN) -> frozenset[Fault]:
    return faults(history(*frames), golden, poison=POISON, losses=Losses(at_ns=losses, slack_ns=0))


def test_a_complete_history_has_no_fault():
    assert found(*VALID) == frozenset()


def test_a_request_that_two_losses_hit_may_be_given_up_after_a_right_prefix():
    assert found(*POISONED) == frozenset()


def replaced(frame: Any, **fields: Any) -> Any:
    return dataclasses.replace(frame, **fields)


BROKEN: dict[str, tuple[tuple[Frame, ...], set[Fault]]] = {
    "a lost frame": ((ACCEPTED, STARTED, FIRST, THIRD, END), {Fault.TOKEN_LOST}),
    "a lost token in a frame": ((ACCEPTED, STARTED, tokens(0, 11), SECOND, THIRD, END), {Fault.TOKEN_LOST}),
    "a lost last token": (
        (ACCEPTED, STARTED, FIRST, SECOND, tokens(3, 14, 15), replaced(END, num_output_tokens=5)),
        {Fault.TOKEN_LOST},
    ),
    "a doubled frame": ((ACCEPTED, STARTED, FIRST, SECOND, SECOND, THIRD, END), {Fault.TOKEN_REPEATED}),
    "two frames swapped": (
        (ACCEPTED, STARTED, FIRST, replaced(THIRD, at_ns=32), replaced(SECOND, at_ns=33), END),
        {Fault.TOKEN_LOST, Fault.TOKEN_REPEATED, Fault.TOKEN_WRONG},
    ),
    "two tokens swapped": ((ACCEPTED, STARTED, tokens(0, 12, 11), SECOND, THIRD, END), {Fault.TOKEN_WRONG}),
    "a wrong token": ((ACCEPTED, STARTED, FIRST, tokens(2, 99), THIRD, END), {Fault.TOKEN_WRONG}),
    "a token too many": (
        (ACCEPTED, STARTED, FIRST, SECOND, THIRD, tokens(6, 17), replaced(END, num_output_tokens=7)),
        {Fault.TOKEN_SURPLUS},
    ),
    "a token that is counted but not listed": (
        (ACCEPTED, STARTED, FIRST, replaced(SECOND, num_tokens=2), THIRD, END),
        {Fault.TOKEN_MISCOUNTED},
    ),
    "a token after the terminal": (
        (ACCEPTED, STARTED, FIRST, SECOND, END, replaced(THIRD, at_ns=91)),
        {Fault.FRAME_AFTER_TERMINAL},
    ),
    "an empty frame after the terminal": ((*VALID, tokens(6, at_ns=91)), {Fault.FRAME_AFTER_TERMINAL}),
    "two terminals": ((*VALID, END), {Fault.TERMINAL_REPEATED}),
    "an error after the terminal": (
        (*VALID, Terminal(at_ns=91, reason="UNAVAILABLE")),
        {Fault.TERMINAL_REPEATED, Fault.FRAME_AFTER_TERMINAL},
    ),
    "no terminal": ((ACCEPTED, STARTED, FIRST, SECOND, THIRD), {Fault.TERMINAL_MISSING}),
    "nothing at all": ((), {Fault.ACCEPTED_WRONGLY, Fault.TERMINAL_MISSING}),
    "an end of another kind": (
        (ACCEPTED, STARTED, FIRST, SECOND, THIRD, replaced(END, reason="FINISH_REASON_CANCELLED")),
        {Fault.TERMINAL_WRONG},
    ),
    "another error": (
        (ACCEPTED, STARTED, FIRST, Terminal(at_ns=90, reason="UNAVAILABLE", error_reason="SCHEDULER_LOST")),
        {Fault.TERMINAL_WRONG},
    ),
    "a foreign adapter": (
        (ACCEPTED, replaced(STARTED, adapters=(("beta", DIGEST),)), FIRST, SECOND, THIRD, END),
        {Fault.ADAPTER_FOREIGN},
    ),
    "another version of the adapter": (
        (ACCEPTED, replaced(STARTED, adapters=(("alpha", "cd" * 32),)), FIRST, SECOND, THIRD, END),
        {Fault.ADAPTER_FOREIGN},
    ),
    "the base model in the adapter's place": (
        (ACCEPTED, replaced(STARTED, adapters=()), FIRST, SECOND, THIRD, END),
        {Fault.ADAPTER_FOREIGN},
    ),
    "another seed": ((ACCEPTED, replaced(STARTED, seed=8), FIRST, SECOND, THIRD, END), {Fault.SEED_FOREIGN}),
    "tokens before the start": ((ACCEPTED, FIRST, STARTED, SECOND, THIRD, END), {Fault.STARTED_WRONGLY}),
    "no start": ((ACCEPTED, FIRST, SECOND, THIRD, END), {Fault.STARTED_WRONGLY}),
    "two starts": ((ACCEPTED, STARTED, STARTED, FIRST, SECOND, THIRD, END), {Fault.STARTED_WRONGLY}),
    "no acceptance": ((STARTED, FIRST, SECOND, THIRD, END), {Fault.ACCEPTED_WRONGLY}),
    "a usage that miscounts": (
        (ACCEPTED, STARTED, FIRST, SECOND, THIRD, replaced(END, num_output_tokens=5)),
        {Fault.USAGE_WRONG},
    ),
    "a wrong text": ((ACCEPTED, STARTED, FIRST, replaced(SECOND, text="x"), THIRD, END), {Fault.TEXT_WRONG}),
    "a lost piece of text": ((ACCEPTED, STARTED, FIRST, SECOND, replaced(THIRD, text="de"), END), {Fault.TEXT_WRONG}),
    "a frame out of time": ((ACCEPTED, STARTED, FIRST, replaced(SECOND, at_ns=1), THIRD, END), {Fault.TIME_BACKWARD}),
    "a wrong token before the error": (
        (ACCEPTED, STARTED, FIRST, tokens(2, 99), GIVEN_UP),
        {Fault.TOKEN_WRONG},
    ),
    "a lost token before the error": (
        (ACCEPTED, STARTED, FIRST, tokens(3, 14), GIVEN_UP),
        {Fault.TOKEN_LOST},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_history_is_flagged(name):
    frames, expected = BROKEN[name]
    assert expected <= found(*frames)


@pytest.mark.parametrize("losses", [(), (40,), (1, 2, 40), (40, 95)])
def test_a_request_is_not_given_up_before_two_workers_were_lost_under_it(losses):
    assert Fault.TERMINAL_WRONG in found(*POISONED, losses=losses)


def test_without_a_rule_no_error_is_allowed():
    assert Fault.TERMINAL_WRONG in faults(history(*POISONED), GOLDEN, losses=Losses(at_ns=(40, 80)))


def test_an_adapter_where_the_base_model_was_asked_for_is_foreign():
    base = dataclasses.replace(SUBMISSION, adapter=None)
    golden = dataclasses.replace(GOLDEN, adapters=())
    assert Fault.ADAPTER_FOREIGN in faults(history(*VALID, submission=base), golden)


# --- any single mutation of a valid history ---


def _drop(frames: list[Any], data: st.DataObject) -> None:
    del frames[_index(frames, data, Any)]


def _repeat(frames: list[Any], data: st.DataObject) -> None:
    at = _index(frames, data, Any)
    frames.insert(at, frames[at])


def _swap_frames(frames: list[Any], data: st.DataObject) -> None:
    one, other = _index(frames, data, Any), _index(frames, data, Any)
    frames[one], frames[other] = frames[other], frames[one]


def _change_token(frames: list[Any], data: st.DataObject) -> None:
    at = _index(frames, data, Tokens)
    ids = list(frames[at].token_ids)
    ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.integers(0, 49_151))
    frames[at] = replaced(frames[at], token_ids=tuple(ids))


def _drop_token(frames: list[Any], data: st.DataObject) -> None:
    at = _index(frames, data, Tokens)
    ids = list(frames[at].token_ids)
    del ids[data.draw(st.integers(0, len(ids) - 1))]
    frames[at] = replaced(frames[at], token_ids=tuple(ids), num_tokens=len(ids))


def _repeat_token(frames: list[Any], data: st.DataObject) -> None:
    at = _index(frames, data, Tokens)
    ids = list(frames[at].token_ids)
    index = data.draw(st.integers(0, len(ids) - 1))
    ids.insert(index, ids[index])
    frames[at] = replaced(frames[at], token_ids=tuple(ids), num_tokens=len(ids))


def _move_index(frames: list[Any], data: st.DataObject) -> None:
    at = _index(frames, data, Tokens)
    frames[at] = replaced(frames[at], first_token=data.draw(st.integers(0, 40)))


def _miscount(frames: list[Any], data: st.DataObject) -> None:
    at = _index(frames, data, Tokens)
    frames[at] = replaced(frames[at], num_tokens=data.draw(st.integers(0, 40)))


def _change_text(frames: list[Any], data: st.DataObject) -> None:
    """Letters that no golden text has. Text that only ends early before an error is allowed: it lags behind tokens."""
    at = _index(frames, data, Tokens)
    frames[at] = replaced(frames[at], text=data.draw(st.text("xyz", min_size=1, max_size=3)))


def _change_start(frames: list[Any], data: st.DataObject) -> None:
    others = [("beta", DIGEST, 7), ("alpha", "cd" * 32, 7), ("alpha", DIGEST, 8)]
    name, digest, seed = data.draw(st.sampled_from(others))
    frames[1] = replaced(frames[1], adapters=((name, digest),), seed=seed)


def _change_end(frames: list[Any], data: st.DataObject) -> None:
    reasons = ["FINISH_REASON_EOS", "FINISH_REASON_CANCELLED", "UNAVAILABLE", COMPLETE, FAILED]
    error_reason = data.draw(st.sampled_from(["", "WORKER_LOST", "INTERNAL"]))
    frames[-1] = replaced(frames[-1], reason=data.draw(st.sampled_from(reasons)), error_reason=error_reason)


def _change_usage(frames: list[Any], data: st.DataObject) -> None:
    frames[-1] = replaced(frames[-1], num_output_tokens=data.draw(st.integers(0, 50)))


def _append(frames: list[Any], data: st.DataObject) -> None:
    late = [tokens(6, 17, at_ns=10**9), Terminal(at_ns=10**9, reason=COMPLETE, num_output_tokens=6)]
    frames.append(data.draw(st.sampled_from(late)))


def _turn_back_time(frames: list[Any], data: st.DataObject) -> None:
    at = _index(frames, data, Any)
    frames[at] = replaced(frames[at], at_ns=data.draw(st.integers(0, 4)))


def _index(frames: list[Any], data: st.DataObject, kind: Any) -> int:
    """Of any frame, or of any of one kind."""
    return data.draw(st.sampled_from([at for at, frame in enumerate(frames) if kind is Any or isinstance(frame, kind)]))


MUTATIONS: list[Callable[[list[Any], st.DataObject], None]] = [
    _drop,
    _repeat,
    _swap_frames,
    _change_token,
    _drop_token,
    _repeat_token,
    _move_index,
    _miscount,
    _change_text,
    _change_start,
    _change_end,
    _change_usage,
    _append,
    _turn_back_time,
]


def _tokens_at(frames: list[Any], at: int) -> Tokens:
    frame = frames[at]
    assume(isinstance(frame, Tokens))
    return frame


@st.composite
def valid_histories(draw) -> tuple[Golden, list[Any], tuple[int, ...]]:
    """A golden run cut into frames at random, to the end or up to a permitted error; and when workers were lost."""
    ids = tuple(draw(st.lists(st.integers(0, 49_151), min_size=2, max_size=12)))
    golden = Golden(token_ids=ids, text="".join(chr(97 + id_ % 23) for id_ in ids), adapters=GOLDEN.adapters)
    is_poisoned = draw(st.booleans())
    num_seen = draw(st.integers(1, len(ids) - 1)) if is_poisoned else len(ids)
    cuts = sorted({0, num_seen, *draw(st.lists(st.integers(0, num_seen), max_size=5))})
    frames: list[Any] = [ACCEPTED, STARTED]
    for first, stop in itertools.pairwise(cuts):
        frames.append(tokens(first, *ids[first:stop], text=golden.text[first:stop]))
    if is_poisoned:
        frames.append(replaced(GIVEN_UP, num_output_tokens=num_seen))
    else:
        frames.append(replaced(END, num_output_tokens=num_seen))
    return golden, frames, (40, 80) if is_poisoned else ()


@settings(deadline=None)
@given(valid_histories())
def test_every_cut_of_a_golden_run_into_frames_is_allowed(case):
    golden, frames, losses = case
    assert found(*frames, losses=losses, golden=golden) == frozenset()


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
@settings(deadline=None)
@given(case=valid_histories(), data=st.data())
def test_any_single_mutation_of_a_valid_history_is_flagged(mutate, case, data):
    golden, frames, losses = case
    mutated = list(frames)
    mutate(mutated, data)
    assume(mutated != frames)
    assert found(*mutated, losses=losses, golden=golden)
