"""Decides whether a recorded history is one that the contract allows. Pure: no clock, no service, no state.

The contract (design section 8, rule 1; the comments in inference.proto and session.proto):

1.  Accepted comes first and once, then Started once, then tokens, then one terminal, then nothing.
2.  Each token index comes once and in order, and every frame counts the tokens that it lists.
3.  Tokens and text equal those of the undisturbed run of the same submission, all of them.
4.  The adapter that answered is the one that was asked for, in the version that the undisturbed run had; same seed.
5.  The usage counts the tokens that came.
6.  The one error that may end a stream instead is that of a request under which too many workers were lost, and only
    if so many were lost while it was open. What came before it is a prefix of the undisturbed run.
"""

import bisect
import dataclasses
import enum
from collections.abc import Iterator, Sequence

from tests.faults.history import Accepted, Frame, History, Started, Terminal, Tokens

COMPLETE = "FINISH_REASON_MAX_TOKENS"
FAILED = "FINISH_REASON_ERROR"


class Fault(enum.Enum):
    """What a history can have wrong."""

    ACCEPTED_WRONGLY = "not accepted exactly once, first of all"
    STARTED_WRONGLY = "not started exactly once, before the first token"
    TOKEN_LOST = "an index is missing"
    TOKEN_REPEATED = "an index came again"
    TOKEN_MISCOUNTED = "a frame does not list the tokens that it counts"
    TOKEN_WRONG = "a token differs from the undisturbed run"
    TOKEN_SURPLUS = "more tokens than the undisturbed run"
    TEXT_WRONG = "the text differs from the undisturbed run"
    TERMINAL_MISSING = "no terminal"
    TERMINAL_REPEATED = "more than one terminal"
    TERMINAL_WRONG = "ended in a way that this request cannot end"
    FRAME_AFTER_TERMINAL = "something came after the terminal"
    ADAPTER_FOREIGN = "another adapter answered"
    SEED_FOREIGN = "another seed was used"
    USAGE_WRONG = "the usage does not count what came"
    TIME_BACKWARD = "a frame is older than the one before it"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """What the same submission gives when nothing disturbs it."""

    token_ids: tuple[int, ...]
    text: str
    adapters: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoisonRule:
    """When the service may give a request up."""

    error_reason: str
    min_losses: int
    """Workers that must have been lost under it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """When workers were lost, whichever they were: monotonic, rising."""

    at_ns: Sequence[int] = ()
    slack_ns: int = 500_000_000
    """A loss is written down after those who ran there have been told."""

    def during(self, history: History) -> int:
        """An upper bound of the losses under a stream: those while it was open."""
        first = bisect.bisect_left(self.at_ns, history.submitted_ns)
        return bisect.bisect_right(self.at_ns, history.ended_ns + self.slack_ns) - first


def faults(
    history: History, golden: Golden, *, poison: PoisonRule | None = None, losses: Losses | None = None
) -> frozenset[Fault]:
    """Everything that is wrong with ``history``; empty if it is one that the contract allows."""
    return frozenset(
        [
            *_order_faults(history.frames),
            *_index_faults(history),
            *_golden_faults(history, golden),
            *_echo_faults(history, golden),
            *_terminal_faults(history, poison, losses or Losses()),
            *_time_faults(history),
        ]
    )


def is_poisoned(history: History, poison: PoisonRule) -> bool:
    """Whether it ended with the error of a request that was given up."""
    end = history.terminal
    return end is not None and end.error_reason == poison.error_reason


def _order_faults(frames: Sequence[Frame]) -> Iterator[Fault]:
    kinds = [type(frame) for frame in frames]
    if kinds[:1] != [Accepted] or kinds.count(Accepted) != 1:
        yield Fault.ACCEPTED_WRONGLY
    if Tokens in kinds or Started in kinds:
        before_tokens = kinds[: kinds.index(Tokens)] if Tokens in kinds else kinds
        if before_tokens.count(Started) != 1 or kinds.count(Started) != 1:
            yield Fault.STARTED_WRONGLY
    if Terminal not in kinds:
        yield Fault.TERMINAL_MISSING
        return
    if kinds.count(Terminal) > 1:
        yield Fault.TERMINAL_REPEATED
    if kinds[kinds.index(Terminal) + 1 :]:
        yield Fault.FRAME_AFTER_TERMINAL


def _index_faults(history: History) -> Iterator[Fault]:
    expected = 0
    for frame in history.frames:
        if not isinstance(frame, Tokens):
            continue
        if frame.num_tokens != len(frame.token_ids):
            yield Fault.TOKEN_MISCOUNTED
        if frame.first_token > expected:
            yield Fault.TOKEN_LOST
        if frame.first_token < expected:
            yield Fault.TOKEN_REPEATED
        expected = frame.first_token + len(frame.token_ids)


def _golden_faults(history: History, golden: Golden) -> Iterator[Fault]:
    seen = history.token_ids
    if len(seen) > len(golden.token_ids):
        yield Fault.TOKEN_SURPLUS
    if any(one != other for one, other in zip(seen, golden.token_ids, strict=False)):
        yield Fault.TOKEN_WRONG
    if _is_complete(history):
        if len(seen) < len(golden.token_ids):
            yield Fault.TOKEN_LOST
        if history.text != golden.text:
            yield Fault.TEXT_WRONG
    elif not golden.text.startswith(history.text):
        yield Fault.TEXT_WRONG


def _echo_faults(history: History, golden: Golden) -> Iterator[Fault]:
    asked = history.submission.adapter
    for frame in history.frames:
        if isinstance(frame, Started):
            names = [name for name, _ in frame.adapters]
            if names != ([] if asked is None else [asked]) or frame.adapters != golden.adapters:
                yield Fault.ADAPTER_FOREIGN
            if frame.seed != history.submission.seed:
                yield Fault.SEED_FOREIGN
    is_started = any(isinstance(frame, Started) for frame in history.frames)
    if _is_complete(history) and not is_started:
        yield Fault.STARTED_WRONGLY


def _terminal_faults(history: History, poison: PoisonRule | None, losses: Losses) -> Iterator[Fault]:
    end = history.terminal
    if end is None:
        return
    if end.num_output_tokens is not None and end.num_output_tokens != len(history.token_ids):
        yield Fault.USAGE_WRONG
    if end.reason == COMPLETE:
        if end.error_reason:
            yield Fault.TERMINAL_WRONG
        if end.num_output_tokens is None:
            yield Fault.USAGE_WRONG
    elif poison is None or not is_poisoned(history, poison) or losses.during(history) < poison.min_losses:
        yield Fault.TERMINAL_WRONG


def _time_faults(history: History) -> Iterator[Fault]:
    times = [history.submitted_ns, *(frame.at_ns for frame in history.frames)]
    if times != sorted(times):
        yield Fault.TIME_BACKWARD


def _is_complete(history: History) -> bool:
    end = history.terminal
    return end is not None and end.reason == COMPLETE
