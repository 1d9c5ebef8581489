"""What a client saw of one stream: what it asked for, and every frame in the order and at the time it came."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was asked for."""

    prompt: str
    adapter: str | None
    """Name; None is the base model."""
    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_k: int
    """0 is off."""
    seed: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    at_ns: int
    """Monotonic, as in every frame."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    at_ns: int
    adapters: tuple[tuple[str, str], ...]
    """Name and digest of what the service resolved; empty for the base model."""
    seed: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    at_ns: int
    first_token: int
    token_ids: tuple[int, ...]
    num_tokens: int
    """As the frame counts them."""
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    at_ns: int
    reason: str
    """Name of the finish reason, or of the gRPC status that ended the call instead."""
    error_reason: str = ""
    """The stable reason, where it ended with an error."""
    num_output_tokens: int | None = None
    """As the usage says; None where the terminal carries none."""
    num_recomputed_tokens: int = 0


Frame = Accepted | Started | Tokens | Terminal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One stream from its submission until the client had waited for everything that could still come."""

    submission: Submission
    submitted_ns: int
    frames: tuple[Frame, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """In the order in which they came."""
        return tuple(id_ for frame in self.frames if isinstance(frame, Tokens) for id_ in frame.token_ids)

    @property
    def text(self) -> str:
        return "".join(frame.text for frame in self.frames if isinstance(frame, Tokens))

    @property
    def terminal(self) -> Terminal | None:
        """The first one."""
        return next((frame for frame in self.frames if isinstance(frame, Terminal)), None)

    @property
    def ended_ns(self) -> int:
        return self.frames[-1].at_ns if self.frames else self.submitted_ns
