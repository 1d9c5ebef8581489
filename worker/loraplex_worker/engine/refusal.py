"""How an engine says no to a command, and stays consistent."""

import enum


class RefusalReason(enum.Enum):
    """Why a command could not be carried out. The names are stable: they go over the wire."""

    SEQUENCE_EXISTS = "SEQUENCE_EXISTS"
    ADAPTER_NOT_ATTACHED = "ADAPTER_NOT_ATTACHED"
    ADAPTER_EXISTS = "ADAPTER_EXISTS"
    ADAPTER_IN_USE = "ADAPTER_IN_USE"
    OUT_OF_PAGES = "OUT_OF_PAGES"
    TOO_MANY_SEQUENCES = "TOO_MANY_SEQUENCES"
    FIELD_INVALID = "FIELD_INVALID"


class CommandRefused(Exception):
    """A command that was not carried out. The engine is as it was before it.

    Args:
        reason: stable and machine-readable.
        message: what was given, what is allowed.
        sequence_id: whose command it was; None for adapter and budget commands.
        digest: the adapter concerned, if any.
    """

    def __init__(
        self,
        reason: RefusalReason,
        message: str,
        *,
        sequence_id: int | None = None,
        digest: str | None = None,
    ) -> None:
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason
        self.message = message
        self.sequence_id = sequence_id
        self.digest = digest
