"""The life of a sequence as one table. Whatever is not in it is a bug of ours."""

import enum
from typing import Final


class State(enum.Enum):
    QUEUED = "QUEUED"
    ADMITTED = "ADMITTED"
    DONE = "DONE"


class Transition(enum.Enum):
    ADMIT = "ADMIT"
    PREEMPT = "PREEMPT"
    LOSE_WORKER = "LOSE_WORKER"
    END = "END"


TRANSITIONS: Final[dict[State, dict[Transition, State]]] = {
    State.QUEUED: {Transition.ADMIT: State.ADMITTED, Transition.END: State.DONE},
    State.ADMITTED: {
        Transition.PREEMPT: State.QUEUED,
        Transition.LOSE_WORKER: State.QUEUED,
        Transition.END: State.DONE,
    },
    State.DONE: {},
}


def after(state: State, transition: Transition) -> State:
    """The next state; AssertionError where the table has none."""
    following = TRANSITIONS[state].get(transition)
    assert following is not None, f"{transition.value} in state {state.value}"
    return following
