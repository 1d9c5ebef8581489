"""Text to token ids. What a user wrote never becomes a control token, whatever it spells."""

import asyncio
import concurrent.futures
import re
from collections.abc import Sequence
from typing import Final

import tokenizers

from loraplex_contract.errors import InvalidArgument
from loraplex_frontend.text.decode_table import DecodeTable

INLINE_CHARS: Final = 2048
"""Text up to this length is encoded on the event loop: about 1 ms, cheaper than a thread."""


class Tokenizer:
    """The model's tokenizer in two modes.

    Plain mode (``encode_text``) splits the names of control tokens like any other text. Template mode
    (``encode_template``) turns them into their ids; only text that the chat template wrote goes through it.
    A control token is an added token with ``special`` set; the other added tokens are ordinary vocabulary.
    """

    def __init__(self, tokenizer_json: str, *, vocab_size: int, num_threads: int = 2) -> None:
        self._plain = _load(tokenizer_json)
        self._plain.encode_special_tokens = True
        self._template = _load(tokenizer_json)
        added = self._plain.get_added_tokens_decoder()
        self.special_tokens: Final = {token.content: i for i, token in added.items() if token.special}
        self._control_ids = frozenset(self.special_tokens.values()) - _unknown_ids(self._plain)
        names = sorted(self.special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self.decode_table: Final = DecodeTable.of(self._plain, tokenizer_json=tokenizer_json, vocab_size=vocab_size)
        self._threads = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of text from a user; ``add_special_tokens`` adds what the tokenizer puts around a text, e.g. BOS.

        Raises:
            InvalidArgument: the tokenizer turns the text into a control token even so (PROMPT_NOT_ENCODABLE).
        """
        # The batch call releases the interpreter's lock, the single one does not.
        encoding = self._plain.encode_batch([text], add_special_tokens=False)[0]
        ids: list[int] = encoding.ids
        if not self._control_ids.isdisjoint(ids):
            message = "the text becomes a control token of this model: send it as token ids if that is meant"
            raise InvalidArgument(message, reason="PROMPT_NOT_ENCODABLE")
        if add_special_tokens:
            ids = self._plain.post_process(encoding, None, True).ids
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Ids of text that the chat template wrote: names of control tokens become these. Nothing is added around."""
        ids: list[int] = self._template.encode_batch([text], add_special_tokens=False)[0].ids
        return ids

    async def encode_text_async(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """``encode_text`` that keeps long work off the event loop."""
        if len(text) <= INLINE_CHARS:
            return self.encode_text(text, add_special_tokens=add_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, lambda: self.encode_text(text, add_special_tokens=add_special_tokens)
        )

    @property
    def threads(self) -> concurrent.futures.Executor:
        """Where long text work runs."""
        return self._threads

    def special_spans(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, name) of every control token's name in ``text``, leftmost and longest first."""
        return [(*match.span(), match.group()) for match in self._special_pattern.finditer(text)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """All at once; the same text as the deltas of an incremental detokenizer put together."""
        detokenizer = self.decode_table.detokenizer(skip_special_tokens=skip_special_tokens)
        return detokenizer.push(token_ids) + detokenizer.flush()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _load(tokenizer_json: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    # Either would change a prompt without anybody having asked for it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unknown_ids(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    """What unknown characters become is ordinary output of encoding, special or not."""
    name = getattr(tokenizer.model, "unk_token", None)
    unknown = tokenizer.token_to_id(name) if isinstance(name, str) else None
    return frozenset() if unknown is None else frozenset({unknown})
