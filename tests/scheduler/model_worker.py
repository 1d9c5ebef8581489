"""A worker in plain Python that obeys commands with books of its own, and asserts that none had to be refused."""

import dataclasses
import hashlib
from collections.abc import Iterable

from loraplex_contract.errors import LoraplexError
from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events


def token_of(prompt_ids: tuple[int, ...], adapters: tuple[commands.AdapterWeight, ...], seed: int, index: int) -> int:
    """What the model answers at this place of the output: a pure function of the request, as a real model is."""
    key = repr((prompt_ids, tuple((a.digest, a.weight) for a in adapters), seed, index)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:2], "little")


def frame_order(turn: Iterable[commands.WorkerCommand]) -> list[commands.WorkerCommand]:
    """The order in which a worker applies one frame: by kind, and nothing is admitted that the frame retires."""
    turn = list(turn)
    retired = {c.sequence_id for c in turn if isinstance(c, commands.Retire)}
    kinds = (commands.Retire, commands.EvictAdapter, commands.LoadAdapter, commands.Grant, commands.Admit)
    ordered: list[commands.WorkerCommand] = []
    for kind in kinds:
        ordered += [c for c in turn if isinstance(c, kind)]
    return [c for c in ordered if not (isinstance(c, commands.Admit) and c.sequence_id in retired)]


@dataclasses.dataclass
class Running:
    admit: commands.Admit
    output: list[int]
    grant: int
    pages: int


class ModelWorker:
    """Commands in, events out; nothing happens but in ``apply``, ``step`` and ``end_load``."""

    def __init__(self, info: events.WorkerInfo) -> None:
        self.info = info
        self.running: dict[int, Running] = {}
        self.adapters: dict[str, int] = {}
        self.loading: dict[str, int] = {}
        self.num_steps = 0

    @property
    def num_free(self) -> int:
        return self.info.num_pages - sum(r.pages for r in self.running.values()) - sum(self.adapters.values())

    def _pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self.info.page_size)

    def apply(self, command: commands.WorkerCommand) -> list[events.Event]:
        match command:
            case commands.Admit():
                self._admit(command)
            case commands.Grant():
                self._grant(command)
            case commands.Retire():
                self.running.pop(command.sequence_id, None)
            case commands.LoadAdapter():
                assert command.digest not in self.adapters, "loaded twice"
                assert command.digest not in self.loading, "asked for twice"
                self.loading[command.digest] = command.num_pages
            case commands.EvictAdapter():
                return [self._evict(command.digest)]
        return []

    def _admit(self, admit: commands.Admit) -> None:
        assert admit.sequence_id not in self.running, "an id was used twice"
        assert len(self.running) < self.info.max_sequences, "too many sequences"
        assert all(part.digest in self.adapters for part in admit.adapters), "admitted without its adapter"
        assert len(admit.emitted_ids) < admit.max_tokens
        pages = self._pages(len(admit.prompt_ids) + admit.grant_tokens)
        assert pages <= self.num_free, f"{pages} pages to admit, {self.num_free} free"
        self.running[admit.sequence_id] = Running(admit, list(admit.emitted_ids), admit.grant_tokens, pages)

    def _grant(self, grant: commands.Grant) -> None:
        running = self.running.get(grant.sequence_id)
        if running is None:
            return
        assert grant.grant_tokens >= running.grant
        pages = self._pages(len(running.admit.prompt_ids) + grant.grant_tokens)
        assert pages - running.pages <= self.num_free, "no pages for a grant"
        running.grant, running.pages = grant.grant_tokens, pages

    def _evict(self, digest: str) -> events.Event:
        users = [r for r in self.running.values() if any(part.digest == digest for part in r.admit.adapters)]
        assert not users, "evicted while in use"
        del self.adapters[digest]
        return self._changed(digest, events.WorkerAdapterState.EVICTED)

    def end_load(self, digest: str, error: LoraplexError | None = None) -> events.Event:
        pages = self.loading.pop(digest)
        if error is not None:
            return self._changed(digest, events.WorkerAdapterState.FAILED, error)
        assert pages <= self.num_free, "no pages for an adapter"
        self.adapters[digest] = pages
        return self._changed(digest, events.WorkerAdapterState.DEVICE)

    def _changed(
        self, digest: str, state: events.WorkerAdapterState, error: LoraplexError | None = None
    ) -> events.AdapterChanged:
        return events.AdapterChanged(
            worker_id=self.info.worker_id, epoch=self.info.epoch, digest=digest, state=state, error=error
        )

    def must_step(self) -> events.StepReported:
        """For a test that knows that there is work."""
        report = self.step()
        assert report is not None, "nothing to do"
        return report

    def step(self) -> events.StepReported | None:
        """One token for each sequence that may go on."""
        active = {id: r for id, r in self.running.items() if len(r.output) < r.grant}
        if not active:
            return None
        self.num_steps += 1
        emissions, finishes = [], []
        digests = frozenset(part.digest for r in active.values() for part in r.admit.adapters)
        has_base = any(not r.admit.adapters for r in active.values())
        for sequence_id, running in active.items():
            admit = running.admit
            assert admit.sampling.seed is not None
            index = len(running.output)
            token = token_of(admit.prompt_ids, admit.adapters, admit.sampling.seed, index)
            if token in admit.stop_token_ids and index >= admit.min_tokens:
                finishes.append(self._finish(sequence_id, events.WorkerFinish.STOP_TOKEN, token))
                continue
            running.output.append(token)
            emissions.append(events.Emission(sequence_id=sequence_id, first_index=index, token_ids=(token,)))
            if len(running.output) == admit.max_tokens:
                finishes.append(self._finish(sequence_id, events.WorkerFinish.MAX_TOKENS))
            elif len(admit.prompt_ids) + len(running.output) >= self.info.max_context_tokens:
                finishes.append(self._finish(sequence_id, events.WorkerFinish.CONTEXT_LIMIT))
        return events.StepReported(
            worker_id=self.info.worker_id,
            epoch=self.info.epoch,
            step=self.num_steps,
            emissions=tuple(emissions),
            finishes=tuple(finishes),
            num_rows=len(active),
            adapter_digests=digests,
            has_base_rows=has_base,
        )

    def _finish(
        self, sequence_id: int, reason: events.WorkerFinish, stop_token_id: int | None = None
    ) -> events.SequenceFinish:
        del self.running[sequence_id]
        return events.SequenceFinish(sequence_id=sequence_id, reason=reason, stop_token_id=stop_token_id)
