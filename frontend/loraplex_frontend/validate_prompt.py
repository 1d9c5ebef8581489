"""Checks of the prompt in its three forms, and of its length once its tokens are known."""

from typing import Any

from google.protobuf import struct_pb2

from loraplex.v1 import generation_pb2
from loraplex_contract import token_bytes
from loraplex_contract.errors import FieldViolation, InvalidArgument
from loraplex_frontend.request import Prompt, TextPrompt, TokenPrompt
from loraplex_frontend.request_limits import (
    MAX_MESSAGES,
    MAX_ROLE_CHARS,
    MAX_TEMPLATE_ARGS_BYTES,
    MAX_TEMPLATE_ARGS_DEPTH,
    RequestLimits,
)
from loraplex_frontend.text.chat_template import Conversation, Message
from loraplex_frontend.validate_sampling import check_vocabulary
from loraplex_frontend.violations import Violations

_NOTHING = TextPrompt(text="")


def check_prompt(pb: generation_pb2.SubmitRequest, found: Violations, limits: RequestLimits) -> Prompt:
    """The prompt; what is wrong goes to ``found``."""
    match pb.WhichOneof("prompt"):
        case "text":
            return _check_text(pb.text, found, limits)
        case "tokens":
            return check_tokens("tokens", pb.tokens, found, limits)
        case "chat":
            return check_chat(pb.chat, found, limits)
        case _:
            found.add("prompt", "one of text, tokens and chat must be set", "PROMPT_MISSING")
            return _NOTHING


def _check_text(text: str, found: Violations, limits: RequestLimits) -> TextPrompt:
    if not text:
        found.add("text", "is empty: a prompt has at least one token", "PROMPT_MISSING")
    check_bytes("text", text, found, limits)
    return TextPrompt(text=text)


def check_bytes(field: str, text: str, found: Violations, limits: RequestLimits) -> None:
    size = len(text.encode())
    if size > limits.max_prompt_bytes:
        description = f"has {size} bytes, the limit is {limits.max_prompt_bytes}"
        found.add(field, description, "PROMPT_TOO_LONG", promptBytes=size, maxPromptBytes=limits.max_prompt_bytes)


def check_tokens(
    field: str, pb: generation_pb2.TokenIds, found: Violations, limits: RequestLimits
) -> TextPrompt | TokenPrompt:
    """Either form as ids; the bytes are counted before they are unpacked."""
    found.known_fields_only(field, pb)
    if pb.ids and pb.ids_le32:
        found.add(field, "ids and ids_le32 are both set: send one", "PROMPT_AMBIGUOUS")
        return _NOTHING
    if not pb.ids and not pb.ids_le32:
        found.add(field, "is empty: a prompt has at least one token", "PROMPT_MISSING")
        return _NOTHING
    if len(pb.ids_le32) % 4:
        found.add(f"{field}.ids_le32", f"has {len(pb.ids_le32)} bytes, must have a multiple of 4")
        return _NOTHING
    num_tokens = len(pb.ids) or len(pb.ids_le32) // 4
    if num_tokens > max_prompt_tokens(limits):
        found.add(field, _too_long(num_tokens, limits), "PROMPT_TOO_LONG", **_too_long_figures(num_tokens, limits))
        return _NOTHING
    token_ids = token_bytes.unpack(pb.ids_le32) if pb.ids_le32 else pb.ids[:]
    check_vocabulary(f"{field}.ids_le32" if pb.ids_le32 else f"{field}.ids", token_ids, found, limits)
    return TokenPrompt(token_ids=token_ids)


def check_chat(pb: generation_pb2.Chat, found: Violations, limits: RequestLimits) -> Conversation:
    """The conversation; what is wrong goes to ``found``."""
    found.known_fields_only("chat", pb)
    if not pb.messages:
        found.add("chat.messages", f"is empty, must have 1 to {MAX_MESSAGES} entries", "PROMPT_MISSING")
    if not found.at_most("chat.messages", pb.messages, MAX_MESSAGES):
        return Conversation(messages=())
    num_bytes = 0
    for index, message in enumerate(pb.messages):
        num_bytes += len(message.content.encode())
        _check_role(f"chat.messages[{index}]", message, found, limits)
    if num_bytes > limits.max_prompt_bytes:
        description = f"have {num_bytes} bytes of content, the limit is {limits.max_prompt_bytes}"
        figures = {"promptBytes": num_bytes, "maxPromptBytes": limits.max_prompt_bytes}
        found.add("chat.messages", description, "PROMPT_TOO_LONG", **figures)
    return Conversation(
        messages=tuple(Message(role=message.role, content=message.content) for message in pb.messages),
        add_generation_prompt=pb.add_generation_prompt if pb.HasField("add_generation_prompt") else True,
        template_args=_template_args(pb, found, limits),
    )


def _check_role(field: str, message: generation_pb2.ChatMessage, found: Violations, limits: RequestLimits) -> None:
    found.known_fields_only(field, message)
    if message.role not in limits.roles:
        known = ", ".join(sorted(limits.roles)[:16])
        found.add(f"{field}.role", f"is {message.role[:MAX_ROLE_CHARS]!r}, known to the chat template: {known}")


def _template_args(pb: generation_pb2.Chat, found: Violations, limits: RequestLimits) -> dict[str, Any]:
    field, args = "chat.template_args", pb.template_args
    if not pb.HasField("template_args"):
        return {}
    if args.ByteSize() > MAX_TEMPLATE_ARGS_BYTES:
        found.add(field, f"has {args.ByteSize()} bytes, the limit is {MAX_TEMPLATE_ARGS_BYTES}")
        return {}
    for name in args.fields:
        if name in limits.reserved_template_names:
            found.add(f"{field}.{name[:64]}", "is set by the server: use another name")
    try:
        return {name: _plain(value, MAX_TEMPLATE_ARGS_DEPTH) for name, value in args.fields.items()}
    except ValueError as error:
        found.add(field, str(error))
        return {}


def _plain(value: struct_pb2.Value, depth_left: int) -> Any:
    """A Struct's value as Python's. Whole numbers become int, as in the JSON that people write."""
    if depth_left == 0:
        raise ValueError(f"is nested deeper than {MAX_TEMPLATE_ARGS_DEPTH}")
    match value.WhichOneof("kind"):
        case "struct_value":
            return {name: _plain(item, depth_left - 1) for name, item in value.struct_value.fields.items()}
        case "list_value":
            return [_plain(item, depth_left - 1) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            if number != number or abs(number) == float("inf"):
                raise ValueError("has a number that is not finite")
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def max_prompt_tokens(limits: RequestLimits) -> int:
    """One place of the context is for the first output token."""
    return limits.max_context_tokens - 1


def check_length(num_tokens: int, max_tokens: int | None, limits: RequestLimits) -> None:
    """Whether prompt and output fit the context.

    Raises:
        InvalidArgument: PROMPT_MISSING, PROMPT_TOO_LONG or CONTEXT_EXCEEDED.
    """
    if num_tokens == 0:
        raise _prompt_error("the prompt has no tokens", "PROMPT_MISSING", {})
    if num_tokens > max_prompt_tokens(limits):
        figures = _too_long_figures(num_tokens, limits)
        raise _prompt_error(_too_long(num_tokens, limits), "PROMPT_TOO_LONG", figures)
    if max_tokens is not None and num_tokens + max_tokens > limits.max_context_tokens:
        description = (
            f"prompt ({num_tokens} tokens) and stop.max_tokens ({max_tokens}) exceed the context of "
            f"{limits.max_context_tokens} tokens: lower max_tokens or leave it out"
        )
        figures = {"promptTokens": num_tokens, "maxTokens": max_tokens, "maxContextTokens": limits.max_context_tokens}
        raise _prompt_error(description, "CONTEXT_EXCEEDED", figures, field="stop.max_tokens")


def _too_long(num_tokens: int, limits: RequestLimits) -> str:
    return f"has {num_tokens} tokens, the longest prompt is {max_prompt_tokens(limits)} tokens"


def _too_long_figures(num_tokens: int, limits: RequestLimits) -> dict[str, int]:
    return {"promptTokens": num_tokens, "maxPromptTokens": max_prompt_tokens(limits)}


def _prompt_error(description: str, reason: str, figures: dict[str, int], *, field: str = "prompt") -> InvalidArgument:
    return InvalidArgument(
        f"{field}: {description}",
        reason=reason,
        metadata={key: str(value) for key, value in figures.items()},
        violations=(FieldViolation(field=field, description=description),),
    )
