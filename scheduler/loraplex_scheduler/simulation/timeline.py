"""The state of a run over time, for its plot."""

import dataclasses


@dataclasses.dataclass(slots=True)
class Timeline:
    """Samples at equal distances."""

    time_ns: list[int] = dataclasses.field(default_factory=list)
    num_waiting: list[int] = dataclasses.field(default_factory=list)
    num_running: list[int] = dataclasses.field(default_factory=list)
    num_tokens: list[int] = dataclasses.field(default_factory=list)
    """Output tokens so far."""
    window_tokens: int = 0
    """Output tokens by the last sample of the window in which requests came."""

    def add(self, *, time_ns: int, num_waiting: int, num_running: int, num_tokens: int) -> None:
        self.time_ns.append(time_ns)
        self.num_waiting.append(num_waiting)
        self.num_running.append(num_running)
        self.num_tokens.append(num_tokens)
