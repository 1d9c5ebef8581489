"""How long a worker may go on without its scheduler."""

import collections


class Lease:
    """Runs for ``ttl_s`` from the sending of the last heartbeat that was answered.

    From the sending and not from the answer: the scheduler counts from when the heartbeat arrived, so that the worker
    always gives up first. Times are monotonic seconds.
    """

    def __init__(self, *, ttl_s: float, now_s: float) -> None:
        self._ttl_s = ttl_s
        self._renewed_s = now_s
        self._sent: collections.OrderedDict[int, float] = collections.OrderedDict()

    @property
    def expires_s(self) -> float:
        return self._renewed_s + self._ttl_s

    def sent(self, sequence: int, now_s: float) -> None:
        """Heartbeat ``sequence`` is on its way; sequences rise."""
        self._sent[sequence] = now_s

    def acked(self, sequence: int) -> None:
        """An answer renews by its own heartbeat and settles all earlier ones; an unknown one is ignored."""
        sent_s = self._sent.get(sequence)
        if sent_s is None:
            return
        self._renewed_s = max(self._renewed_s, sent_s)
        while self._sent and next(iter(self._sent)) <= sequence:
            self._sent.popitem(last=False)
