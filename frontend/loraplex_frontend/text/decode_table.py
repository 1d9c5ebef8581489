"""What each token id spells, read once from tokenizer.json, and the incremental detokenizer that fits its decoder.

Three decoders are known: ByteLevel (Llama 3, Qwen, SmolLM2), the SentencePiece sequence with byte fallback (Llama 2,
Mistral) and Metaspace. Any other is refused at start: a guess could split characters or lose spaces.
"""

import dataclasses
import json
from typing import Any, Final, Self

import tokenizers

from loraplex_frontend.text.detokenizer import (
    ByteLevelDetokenizer,
    Detokenizer,
    FallbackDetokenizer,
    MetaspaceDetokenizer,
)


class DecoderUnsupported(ValueError):
    """The tokenizer's decoder is of a kind that this server cannot run incrementally."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTable:
    """Makes detokenizers; the tables behind them are shared."""

    kind: str
    pieces: list[Any]
    """By token id: bytes (ByteLevel), text or a byte value (fallback), raw text (Metaspace); None spells nothing."""
    pieces_without_special: list[Any]
    strip_start: int = 0
    """Spaces taken from the very start of the text."""
    strip_char: str = " "
    metaspace: str = "▁"

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, *, tokenizer_json: str, vocab_size: int) -> Self:
        """Raises DecoderUnsupported."""
        stages = _stages(json.loads(tokenizer_json).get("decoder"))
        names = [stage["type"] for stage in stages]
        options: dict[str, Any] = {}
        spell: Any
        if names == ["ByteLevel"]:
            kind, spell = "byte_level", _byte_level
        elif names == ["Metaspace"]:
            kind, spell = "metaspace", _as_is
            options = {"metaspace": stages[0]["replacement"], "strip_start": int(_prepends(stages[0]))}
        elif "ByteFallback" in names:
            kind, options = "fallback", _strip_options(stages)
            spell = _fallback_speller(stages)
        else:
            raise DecoderUnsupported(f"tokenizer.json: decoder {names} is not supported")
        pieces = _pieces(tokenizer, spell, vocab_size)
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        plain = [None if i in special else piece for i, piece in enumerate(pieces)]
        if kind == "byte_level":
            pieces, plain = [piece or b"" for piece in pieces], [piece or b"" for piece in plain]
        return cls(kind=kind, pieces=pieces, pieces_without_special=plain, **options)

    def detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer:
        pieces = self.pieces_without_special if skip_special_tokens else self.pieces
        match self.kind:
            case "byte_level":
                return ByteLevelDetokenizer(pieces)
            case "metaspace":
                return MetaspaceDetokenizer(pieces, metaspace=self.metaspace, drops_first=self.strip_start > 0)
            case _:
                return FallbackDetokenizer(pieces, strip_start=self.strip_start, strip_char=self.strip_char)


def _stages(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        raise DecoderUnsupported("tokenizer.json has no decoder")
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _pieces(tokenizer: tokenizers.Tokenizer, spell: Any, vocab_size: int) -> list[Any]:
    """As long as the model's vocabulary, which may have more ids than the tokenizer names."""
    by_id = {i: text for text, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    size = max(vocab_size, max(by_id, default=-1) + 1)
    return [spell(by_id[i]) if i in by_id else None for i in range(size)]


def _as_is(token: str) -> str:
    return token


def _printable_bytes() -> dict[str, int]:
    """The ByteLevel alphabet: printable Latin-1 stands for itself, the other bytes for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + offset): byte for offset, byte in enumerate(rest)}


_PRINTABLE_BYTES: Final = _printable_bytes()


def _byte_level(token: str) -> bytes:
    """A token with a character outside the alphabet, as added tokens may have, stands for its own UTF-8."""
    try:
        return bytes(_PRINTABLE_BYTES[char] for char in token)
    except KeyError:
        return token.encode()


def _prepends(stage: dict[str, Any]) -> bool:
    return bool(stage.get("prepend_scheme", "always") != "never")


def _fallback_speller(stages: list[dict[str, Any]]) -> Any:
    replacements = []
    for stage in stages:
        if stage["type"] == "Replace":
            pattern = stage["pattern"].get("String")
            if pattern is None:
                raise DecoderUnsupported("tokenizer.json: a decoder that replaces by regular expression")
            replacements.append((pattern, stage["content"]))

    def spell(token: str) -> str | int:
        for pattern, content in replacements:
            token = token.replace(pattern, content)
        return _byte_value(token)

    return spell


def _byte_value(token: str) -> str | int:
    """``<0xE2>`` is the byte 0xE2; anything else is text."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return token
    return token


def _strip_options(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Exactly Replace*, ByteFallback, Fuse and an optional Strip at the start, in that order."""
    names = [stage["type"] for stage in stages if stage["type"] != "Replace"]
    replaced_late = any(stage["type"] == "Replace" for stage in stages[-len(names) :])
    if names not in (["ByteFallback", "Fuse"], ["ByteFallback", "Fuse", "Strip"]) or replaced_late:
        raise DecoderUnsupported(f"tokenizer.json: decoder sequence {[stage['type'] for stage in stages]}")
    if names[-1] != "Strip":
        return {}
    strip = stages[-1]
    if strip["stop"] != 0 or len(strip["content"]) != 1:
        raise DecoderUnsupported("tokenizer.json: a decoder that strips the end of the text")
    return {"strip_start": strip["start"], "strip_char": strip["content"]}
