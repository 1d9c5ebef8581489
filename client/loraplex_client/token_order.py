"""Checks that each sequence's tokens come exactly once and in order."""

from loraplex.v1 import generation_pb2
from loraplex_client.convert import generation
from loraplex_contract.errors import Internal


class TokenOrder:
    """What one request has seen so far of each of its sequences."""

    def __init__(self, num_sequences: int) -> None:
        self._next = [0] * num_sequences
        self._finished = [False] * num_sequences

    @property
    def is_complete(self) -> bool:
        return all(self._finished)

    def check(self, delta: generation_pb2.SequenceDelta) -> None:
        """Takes note of a delta.

        Raises:
            Internal: with reason TOKEN_GAP, TOKEN_REPEATED, TOKEN_COUNT, AFTER_FINISH or UNKNOWN_SEQUENCE.
        """
        index = delta.index
        if index >= len(self._next):
            raise _broken("UNKNOWN_SEQUENCE", f"sequence {index} of a request with {len(self._next)}")
        if self._finished[index]:
            raise _broken("AFTER_FINISH", f"sequence {index} goes on after its finish")
        count = generation.num_tokens(delta)
        if delta.token_ids and len(delta.token_ids) != count:
            raise _broken("TOKEN_COUNT", f"sequence {index} lists {len(delta.token_ids)} tokens and counts {count}")
        self._check_first(index, delta.first_token, count)
        self._next[index] += count
        self._finished[index] = delta.HasField("finish")

    def _check_first(self, index: int, first: int, count: int) -> None:
        expected = self._next[index]
        if first == expected or not count:
            return
        reason = "TOKEN_GAP" if first > expected else "TOKEN_REPEATED"
        raise _broken(reason, f"sequence {index} sent token {first} where {expected} comes next")


def _broken(reason: str, what: str) -> Internal:
    return Internal(f"the server broke the order of tokens: {what}", reason=reason)
