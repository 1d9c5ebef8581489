"""The adapters that sequences may use now, and how many do."""

from loraplex_worker.engine.command import AdapterWeight
from loraplex_worker.model.lora_weights import LoraWeights


class AttachedAdapters:
    """Weights by digest with a count of the live sequences that hold each. The engine owns it."""

    def __init__(self) -> None:
        self._weights: dict[str, LoraWeights] = {}
        self._num_users: dict[str, int] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._weights

    def __getitem__(self, digest: str) -> LoraWeights:
        return self._weights[digest]

    def digests(self) -> frozenset[str]:
        return frozenset(self._weights)

    def num_users(self, digest: str) -> int:
        return self._num_users[digest]

    def attach(self, digest: str, weights: LoraWeights) -> None:
        assert digest not in self._weights, digest
        self._weights[digest] = weights
        self._num_users[digest] = 0

    def detach(self, digest: str) -> None:
        assert self._num_users[digest] == 0, digest
        del self._weights[digest], self._num_users[digest]

    def hold(self, adapters: tuple[AdapterWeight, ...]) -> None:
        """A sequence starts to use these; a digest that is listed twice counts twice."""
        for adapter in adapters:
            self._num_users[adapter.digest] += 1

    def release(self, adapters: tuple[AdapterWeight, ...]) -> None:
        for adapter in adapters:
            self._num_users[adapter.digest] -= 1
            assert self._num_users[adapter.digest] >= 0, adapter.digest
