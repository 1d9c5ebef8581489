"""A conversation to text and token ids, by the model's own chat template, in a sandbox with fuel.

The rule about control tokens: those of the prompt are the ones that the template writes, never ones that somebody spelt
in a message. It is kept in three steps.

1. Every control token's name inside a string of the request is replaced by an unguessable placeholder before rendering.
   After rendering the text is cut at the placeholders, and each name goes through the tokenizer's plain mode, which
   splits it like any other text. The rest goes through template mode in one piece between two placeholders, so ordinary
   conversations, which have no placeholder, become exactly what transformers' ``apply_chat_template`` makes of them.
2. Roles are identifiers that the template mentions, or that are in common use: a role is often written between the
   brackets of a control token.
3. The control tokens in the rendered text must be, one by one, those that the template writes for the same conversation
   with harmless contents. A message that completes a control token together with the text around it, or that makes the
   template write others, is refused.
"""

import dataclasses
import datetime
import json
import re
import secrets
from typing import Any, Final

import minijinja

from loraplex_contract.errors import FailedPrecondition, InvalidArgument
from loraplex_frontend.text.tokenizer import Tokenizer

COMMON_ROLES: Final = frozenset({"system", "user", "assistant", "tool", "developer"})
RESERVED_NAMES: Final = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now", "range"})
"""Variables that the server sets; the special tokens' names come on top."""
INLINE_CHARS: Final = 2048
_FUEL_BASE: Final = 200_000
_FUEL_PER_MESSAGE: Final = 2_000
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: str
    content: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    template_args: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_chars(self) -> int:
        return sum(len(message.content) for message in self.messages)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    text: str
    token_ids: list[int]


class _TemplateRefused(Exception):
    """The template called ``raise_exception``."""


class ChatTemplate:
    """The compiled template of one model.

    Args:
        source: Jinja source; None for a model without one, whose every chat is refused.
        special_tokens: template variables such as ``bos_token``.
        max_output_chars: longer results are refused.
    """

    def __init__(
        self, source: str | None, *, special_tokens: dict[str, str], tokenizer: Tokenizer, max_output_chars: int
    ) -> None:
        self._source = source
        self._special_tokens = special_tokens
        self._tokenizer = tokenizer
        self._max_output_chars = max_output_chars
        self.roles: Final = COMMON_ROLES | frozenset(re.findall(r"""['"]([A-Za-z_]{1,32})['"]""", source or ""))
        self._is_usable = source is not None and _compiles(source)

    @property
    def is_usable(self) -> bool:
        """Whether the model has a template that this server can run."""
        return self._is_usable

    @property
    def reserved_names(self) -> frozenset[str]:
        return RESERVED_NAMES | self._special_tokens.keys()

    def encode(self, conversation: Conversation) -> RenderedChat:
        """Renders and tokenises; the text has no BOS but what the template writes.

        Raises:
            FailedPrecondition: the model has no usable template (CHAT_TEMPLATE_MISSING).
            InvalidArgument: the template refuses the conversation or fails on it (CHAT_TEMPLATE_FAILED), or its
                contents change the control tokens (CHAT_CONTROL_TOKENS).
        """
        if not self._is_usable:
            message = "this model has no chat template that the server can run: send the prompt as text or tokens"
            raise FailedPrecondition(message, reason="CHAT_TEMPLATE_MISSING")
        guard = _Placeholders(self._tokenizer)
        rendered = self._render(guard.guarded(conversation))
        self._check_control_tokens(rendered, conversation)
        pieces = guard.split(rendered)
        return RenderedChat(text="".join(text for text, _ in pieces), token_ids=self._encode_pieces(pieces))

    def _check_control_tokens(self, rendered: str, conversation: Conversation) -> None:
        expected = self._render(_harmless(conversation))
        if self._control_tokens(rendered) != self._control_tokens(expected):
            message = "the contents change which control tokens the chat template writes: remove what looks like one"
            raise InvalidArgument(message, reason="CHAT_CONTROL_TOKENS")

    def _control_tokens(self, text: str) -> list[str]:
        return [name for _, _, name in self._tokenizer.special_spans(text)]

    def _encode_pieces(self, pieces: list[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for text, is_from_user in pieces:
            if is_from_user:
                ids += self._tokenizer.encode_text(text, add_special_tokens=False)
            else:
                ids += self._tokenizer.encode_template(text)
        return ids

    def _render(self, conversation: Conversation) -> str:
        environment = _environment(fuel=_FUEL_BASE + _FUEL_PER_MESSAGE * len(conversation.messages))
        variables = {
            **conversation.template_args,
            **self._special_tokens,
            "messages": [dataclasses.asdict(message) for message in conversation.messages],
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        try:
            text = environment.render_str(self._source or "", **variables)
        except _TemplateRefused as refusal:
            raise _failed(f"the chat template refuses this conversation: {str(refusal)[:200]}") from None
        except minijinja.TemplateError as error:
            # Only the kind: the full text shows the template and what it was given.
            raise _failed(f"the chat template fails on this conversation ({error.kind})") from None
        if len(text) > self._max_output_chars:
            raise _failed(f"the chat template writes {len(text)} characters, the limit is {self._max_output_chars}")
        return text


class _Placeholders:
    """Stands for the control tokens' names in one request's strings while the template runs."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Letters and digits only: no template trims, splits or escapes it.
        self._mark = f"x{secrets.token_hex(16)}x"
        self._names: list[str] = []

    def guarded(self, conversation: Conversation) -> Conversation:
        messages = tuple(
            Message(role=message.role, content=self._guard(message.content)) for message in conversation.messages
        )
        args = _map_strings(conversation.template_args, self._guard)
        return dataclasses.replace(conversation, messages=messages, template_args=args)

    def split(self, rendered: str) -> list[tuple[str, bool]]:
        """(text, whether it is a name that the user spelt), in order."""
        pieces = []
        for position, part in enumerate(re.split(rf"{self._mark}(\d+)z", rendered)):
            is_name = position % 2 == 1
            text = self._names[int(part)] if is_name else part
            if text:
                pieces.append((text, is_name))
        return pieces

    def _guard(self, text: str) -> str:
        parts: list[str] = []
        end = 0
        for start, stop, name in self._tokenizer.special_spans(text):
            parts += (text[end:start], f"{self._mark}{len(self._names)}z")
            self._names.append(name)
            end = stop
        return "".join([*parts, text[end:]])


def _harmless(conversation: Conversation) -> Conversation:
    """The same shape with contents that can spell nothing. Plain words stay in the arguments: they may be switches."""
    messages = tuple(
        Message(role=message.role, content="x" if message.content.strip() else message.content)
        for message in conversation.messages
    )
    args = _map_strings(conversation.template_args, lambda text: text if _PLAIN_WORD.fullmatch(text) else "x")
    return dataclasses.replace(conversation, messages=messages, template_args=args)


def _map_strings(value: Any, change: Any) -> Any:
    """Applies ``change`` to every string in a JSON value, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    return value


def _environment(*, fuel: int) -> minijinja.Environment:
    """As transformers sets Jinja up: blocks trimmed, Python's methods on values, its own tojson."""
    environment = minijinja.Environment(
        fuel=fuel, debug=False, trim_blocks=True, lstrip_blocks=True, pycompat=True, auto_escape_callback=_never_escape
    )
    environment.add_filter("tojson", _to_json)
    environment.add_global("raise_exception", _raise_exception)
    environment.add_global("strftime_now", _strftime_now)
    return environment


def _compiles(source: str) -> bool:
    try:
        _environment(fuel=1).undeclared_variables_in_str(source)
    except minijinja.TemplateError:
        return False
    return True


def _never_escape(name: str) -> bool:
    return False


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's filter it escapes nothing for HTML: models were trained on plain JSON."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return minijinja.safe(text)


def _raise_exception(message: str) -> None:
    raise _TemplateRefused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(pattern[:64])


def _failed(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="CHAT_TEMPLATE_FAILED")
