"""What is done to a worker, and what came of it."""

import dataclasses
import random
import signal
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One signal to one worker."""

    signal: signal.Signals
    victim: str
    delay_s: float
    """From when the victim is seen at work."""
    frozen_s: float
    """SIGSTOP only: how long the victim stays frozen after its loss has been noticed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlowResult:
    signal: str
    victim: str
    num_sequences: int
    """That the victim ran at the last look before the blow."""
    detection_s: float
    """From the signal until GetCluster did not count the victim any more."""
    return_s: float
    """From the signal until GetCluster counted it again."""


def draw_blows(seed: int, number: int, victims: Sequence[str]) -> list[Blow]:
    """Half of them SIGKILL and half SIGSTOP, in an order, on victims and at times that follow from ``seed``."""
    draw = random.Random(f"blows {seed}")
    signals = [signal.SIGKILL if index % 2 else signal.SIGSTOP for index in range(number)]
    draw.shuffle(signals)
    return [
        Blow(signal=kind, victim=draw.choice(victims), delay_s=draw.uniform(0, 0.6), frozen_s=draw.uniform(0, 1.0))
        for kind in signals
    ]
