"""The checker of watermarks can fail: each broken history is flagged by its fault, and only that one."""

import dataclasses

import pytest

from tests.faults.history import Accepted, Frame, History, Started, Submission, Terminal, Tokens
from tests.lifecycle.ledger import COMPLETE, Fault, Ledger
from tests.lifecycle.watermark import BASE_TOKEN

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
SUBMISSION = Submission(prompt="Hello", adapter="one", max_tokens=3, temperature=0.0, top_k=0, seed=1)
START = Started(at_ns=120, adapters=(("one", OLD),), seed=1)
END = Terminal(at_ns=900, reason=COMPLETE, num_output_tokens=3)


@pytest.fixture
def ledger() -> Ledger:
    """``one`` is OLD (token 501) until it is updated between 200 and 300 to NEW (502); ``two`` is OTHER (503)."""
    ledger = Ledger()
    ledger.point("one", digest=OLD, token=501, asked_ns=10, acknowledged_ns=20)
    ledger.point("two", digest=OTHER, token=503, asked_ns=10, acknowledged_ns=20)
    ledger.point("one", digest=NEW, token=502, asked_ns=200, acknowledged_ns=300)
    return ledger


def tokens(first: int, *ids: int) -> Tokens:
    return Tokens(at_ns=400, first_token=first, token_ids=ids, num_tokens=len(ids), text="")


def history(*frames: Frame, submitted_ns: int = 100, **fields) -> History:
    submission = dataclasses.replace(SUBMISSION, **fields)
    return History(submission=submission, submitted_ns=submitted_ns, frames=(Accepted(at_ns=110), *frames))


def start(digest: str, *, name: str = "one", at_ns: int = 120) -> Started:
    return dataclasses.replace(START, adapters=((name, digest),), at_ns=at_ns)


def test_one_versions_tokens_are_clean_also_when_they_come_after_the_update(ledger):
    ledger.assert_clean([history(START, tokens(0, 501), tokens(1, 501, 501), END)])


@pytest.mark.parametrize(("digest", "token"), [(OLD, 501), (NEW, 502)])
def test_while_the_update_is_under_way_either_version_is_clean(ledger, digest, token):
    seen = history(start(digest, at_ns=260), tokens(0, token, token, token), END, submitted_ns=250)
    assert ledger.faults(seen) == frozenset()


def test_the_base_model_is_clean_with_its_own_token_only(ledger):
    base = dataclasses.replace(START, adapters=())
    assert not ledger.faults(history(base, tokens(0, *[BASE_TOKEN] * 3), END, adapter=None))
    found = ledger.faults(history(base, tokens(0, BASE_TOKEN, 501, BASE_TOKEN), END, adapter=None))
    assert found == {Fault.FOREIGN_TOKEN}


@pytest.mark.parametrize("foreign", [502, 503, BASE_TOKEN])
def test_one_token_of_another_version_another_adapter_or_the_base_is_foreign(ledger, foreign):
    assert ledger.faults(history(START, tokens(0, 501, 501, foreign), END)) == {Fault.FOREIGN_TOKEN}


BROKEN = {
    Fault.NOT_COMPLETE: history(START, tokens(0, 501, 501, 501)),
    Fault.NUM_TOKENS: history(START, tokens(0, 501), tokens(2, 501, 501), END),
    Fault.NOT_RESOLVED: history(tokens(0, 501, 501, 501), END),
    Fault.OTHER_NAME: history(start(OTHER, name="two"), tokens(0, 503, 503, 503), END),
    Fault.UNKNOWN_VERSION: history(start(OTHER), tokens(0, 503, 503, 503), END),
    Fault.VERSION_OUT_OF_TIME: history(start(NEW), tokens(0, 502, 502, 502), END),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_break_is_flagged_by_its_name(ledger, fault):
    assert ledger.faults(BROKEN[fault]) == {fault}
    with pytest.raises(AssertionError, match="1 of 1 streams are wrong"):
        ledger.assert_clean([BROKEN[fault]])


def test_a_version_that_was_replaced_before_the_request_came_is_out_of_time(ledger):
    late = history(start(OLD, at_ns=320), tokens(0, 501, 501, 501), END, submitted_ns=310)
    assert ledger.faults(late) == {Fault.VERSION_OUT_OF_TIME}
