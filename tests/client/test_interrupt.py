"""Ctrl-C while an answer streams."""

import os
import signal

from loraplex_cli.interrupt import Interrupt


class InterruptedFinalizer:
    """Python ignores what a finalizer raises."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass


def test_an_interrupt_that_a_finalizer_swallowed_is_remembered(recwarn):
    with Interrupt() as interrupt:
        assert not interrupt.is_set
        InterruptedFinalizer()
        assert interrupt.is_set


def test_an_interrupt_ends_the_block_and_goes_no_further():
    # A shell's background job starts with SIGINT ignored.
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert not reached
    assert signal.getsignal(signal.SIGINT) is before
