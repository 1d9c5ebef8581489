"""When a child that ended is started again."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Doubling delays; a run of ``stable_after_s`` wipes the record."""

    min_delay_s: float = 1.0
    max_delay_s: float = 60.0
    stable_after_s: float = 60.0
    max_crashes: int = 8
    """In a row. With the defaults the last one comes some two minutes after the first."""


class CrashRecord:
    """How often one child has ended too soon, in a row."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self.num_crashes = 0

    def next_delay_s(self, uptime_s: float) -> float | None:
        """Seconds to wait before the next start; None = give up."""
        if uptime_s >= self._policy.stable_after_s:
            self.num_crashes = 0
        self.num_crashes += 1
        if self.num_crashes >= self._policy.max_crashes:
            return None
        return float(min(self._policy.max_delay_s, self._policy.min_delay_s * 2 ** (self.num_crashes - 1)))
