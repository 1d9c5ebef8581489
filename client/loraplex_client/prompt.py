"""The forms of a prompt."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from loraplex_contract.errors import field_error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn, e.g. of role ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation, rendered by the model's chat template on the server."""

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], **more: Any) -> "Chat":
        """From the usual ``[{"role": ..., "content": ...}]``; any other key is refused by name."""
        return cls(messages=tuple(_message(index, message) for index, message in enumerate(messages)), **more)


Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Chat
"""Text (special tokens in it are taken as text), token ids, or a conversation, as messages or as Chat."""


def _message(index: int, message: Mapping[str, Any]) -> ChatMessage:
    field = f"messages[{index}]"
    if unknown := sorted(set(message) - {"role", "content"}):
        raise field_error(field, f"keys {unknown} are not supported; give role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise field_error(field, "role and content must both be there and be strings")
    return ChatMessage(role=role, content=content)
