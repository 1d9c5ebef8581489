"""The handles that a session has used, in little memory for clients that count up."""


class HandleSet:
    """All handles up to a floor, and those above it one by one.

    Args:
        max_scattered: how many may be kept above the floor.
    """

    def __init__(self, max_scattered: int) -> None:
        self._floor = 0
        self._scattered: set[int] = set()
        self._max_scattered = max_scattered

    @property
    def is_full(self) -> bool:
        return len(self._scattered) >= self._max_scattered

    def add(self, handle: int) -> bool:
        """False if it was used before."""
        if handle <= self._floor or handle in self._scattered:
            return False
        self._scattered.add(handle)
        while self._floor + 1 in self._scattered:
            self._floor += 1
            self._scattered.discard(self._floor)
        return True
