"""What the complete pages of one sequence are called in the prefix cache."""

from collections.abc import Sequence

from loraplex_contract import prefix_key


class PageKeys:
    """Keys of the complete pages of a growing list of tokens. Each page is hashed once, when first asked for."""

    __slots__ = ("_keys", "_page_size", "_root", "_tokens")

    def __init__(self, root: bytes, tokens: Sequence[int], page_size: int) -> None:
        """Args: tokens: of the sequence; only ever appended to."""
        self._root = root
        self._tokens = tokens
        self._page_size = page_size
        self._keys: list[bytes] = []

    @property
    def num_complete(self) -> int:
        """Pages that the tokens fill."""
        return len(self._tokens) // self._page_size

    def __getitem__(self, number: int) -> bytes:
        """Of the page ``number``, which the tokens must fill."""
        assert 0 <= number < self.num_complete, (number, self.num_complete)
        keys, size = self._keys, self._page_size
        while len(keys) <= number:
            start = len(keys) * size
            keys.append(prefix_key.page_key(keys[-1] if keys else self._root, self._tokens[start : start + size]))
        return keys[number]

    def num_common(self, other: "PageKeys") -> int:
        """Complete pages at the start of both that are alike."""
        low, high = 0, min(self.num_complete, other.num_complete)
        # A key names all that comes before it: where two differ, all that follow do.
        while low < high:
            middle = (low + high) // 2
            if self[middle] == other[middle]:
                low = middle + 1
            else:
                high = middle
        return low
