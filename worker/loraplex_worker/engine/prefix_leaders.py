"""Who had better wait a step because another sequence computes the same beginning right now."""

from loraplex_worker.engine.sequence import Sequence


class PrefixLeaders:
    """The sequences that prefill in one step, by the page that each completes next.

    A sequence whose next pages one of them is about to complete would compute them a second time. It waits where that
    is at least half of what it has to do: the n continuations of one prompt thus cost one prefill. It never waits
    in vain, since a leader computes rows in every step in which somebody waits for it.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._leaders: dict[bytes, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        """It has rows in this step. One whose rows are limited by its prompt's logprobs is nobody's leader."""
        if sequence.page_keys is not None and sequence.prompt_logprobs is None:
            number = sequence.num_computed // self._page_size
            if number < sequence.page_keys.num_complete:
                self._leaders.setdefault(sequence.page_keys[number], sequence)

    def is_ahead_of(self, sequence: Sequence) -> bool:
        """Whether ``sequence``, which has computed nothing yet, had better wait."""
        keys = sequence.page_keys
        number = sequence.num_computed // self._page_size
        if not self._leaders or keys is None or sequence.prompt_logprobs is not None or number >= keys.num_complete:
            return False
        leader = self._leaders.get(keys[number])
        if leader is None:
            return False
        assert leader.page_keys is not None
        num_spared = keys.num_common(leader.page_keys) * self._page_size - sequence.num_computed
        return 2 * num_spared >= sequence.num_pending
