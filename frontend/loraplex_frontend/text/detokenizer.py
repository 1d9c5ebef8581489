"""Token ids to text, token by token: whole code points only, and in the end exactly what decoding all at once gives."""

import abc
import codecs
from collections.abc import Iterable, Sequence
from typing import Final

_UTF8: Final = codecs.getincrementaldecoder("utf-8")


class Detokenizer(abc.ABC):
    """The state of one sequence. Ids outside the vocabulary spell nothing."""

    @abc.abstractmethod
    def push(self, token_ids: Iterable[int]) -> str:
        """Text that these tokens complete; the beginning of an incomplete character is kept for later."""

    @abc.abstractmethod
    def flush(self) -> str:
        """What is left at the end: an incomplete character becomes U+FFFD."""


class ByteLevelDetokenizer(Detokenizer):
    """Each token is a run of bytes; the text is their UTF-8, invalid parts replaced."""

    __slots__ = ("_decode", "_pieces")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decode = _UTF8("replace").decode

    def push(self, token_ids: Iterable[int]) -> str:
        pieces = self._pieces
        try:
            return self._decode(b"".join([pieces[i] for i in token_ids]))
        except IndexError:
            return self._decode(b"".join([pieces[i] for i in token_ids if i < len(pieces)]))

    def flush(self) -> str:
        return self._decode(b"", True)


class FallbackDetokenizer(Detokenizer):
    """SentencePiece with byte tokens: a run of these is UTF-8 as a whole, or one U+FFFD for each byte.

    The end of a run decides about all of it, so the text of a run comes when the run ends.
    """

    __slots__ = ("_pieces", "_run", "_strip_char", "_strip_left")

    def __init__(self, pieces: Sequence[str | int | None], *, strip_start: int, strip_char: str) -> None:
        self._pieces = pieces
        self._run = bytearray()
        self._strip_left = strip_start
        self._strip_char = strip_char

    def push(self, token_ids: Iterable[int]) -> str:
        parts: list[str] = []
        for token_id in token_ids:
            piece = self._pieces[token_id] if token_id < len(self._pieces) else None
            if isinstance(piece, int):
                self._run.append(piece)
            elif piece is not None:
                parts += (self._end_run(), piece)
        return self._strip("".join(parts))

    def flush(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        if not self._run:
            return ""
        run = bytes(self._run)
        self._run.clear()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _strip(self, text: str) -> str:
        while text and self._strip_left > 0:
            if text[0] != self._strip_char:
                self._strip_left = 0
                break
            text = text[1:]
            self._strip_left -= 1
        return text


class MetaspaceDetokenizer(Detokenizer):
    """SentencePiece without byte tokens: the replacement character is a space, but for the one put in front."""

    __slots__ = ("_drops_next", "_metaspace", "_pieces")

    def __init__(self, pieces: Sequence[str | None], *, metaspace: str, drops_first: bool) -> None:
        self._pieces = pieces
        self._metaspace = metaspace
        self._drops_next = drops_first

    def push(self, token_ids: Iterable[int]) -> str:
        parts = []
        for token_id in token_ids:
            piece = self._pieces[token_id] if token_id < len(self._pieces) else None
            if piece is not None:
                parts.append(piece.replace(self._metaspace, "" if self._drops_next else " "))
                self._drops_next = False
        return "".join(parts)

    def flush(self) -> str:
        return ""
