"""A worker that takes the time its cost model says, and keeps books of its own to judge every command by."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core import event as events
from loraplex_scheduler.core.ledger import num_pages_for
from loraplex_scheduler.simulation.adapter_channels import AdapterChannels
from loraplex_scheduler.simulation.event_heap import EventHeap
from loraplex_scheduler.simulation.preset import Preset
from loraplex_scheduler.simulation.virtual_batch import Step, VirtualBatch
from loraplex_scheduler.simulation.virtual_sequence import VirtualSequence

_ORDER: Final = (commands.Retire, commands.EvictAdapter, commands.LoadAdapter, commands.Grant, commands.Admit)


class VirtualWorker:
    """Steps by itself while any sequence can go on. Commands and loaded adapters take effect between steps.

    Args:
        ranks: of each digest that it may be asked to load.
        send: takes an event to the core; the link's delay is the caller's.
    """

    def __init__(
        self,
        info: events.WorkerInfo,
        preset: Preset,
        ranks: Mapping[str, int],
        heap: EventHeap,
        send: Callable[[events.Event], None],
    ) -> None:
        self.info: Final = info
        self._preset: Final = preset
        self._ranks: Final = ranks
        self._heap: Final = heap
        self._send: Final = send
        self._max_step_tokens = info.max_step_tokens
        self._num_free = info.num_pages
        self._adapter_bytes: dict[str, int] = {}
        self._adapter_pages: dict[str, int] = {}
        self._num_users: dict[str, int] = {}
        self._loading_pages: dict[str, int] = {}
        self._loaded: list[str] = []
        """Bytes have come; attached at the end of the step."""
        self._inbox: list[commands.WorkerCommand] = []
        self._batch: Final = VirtualBatch(self._adapter_bytes)
        self._channels: Final = AdapterChannels(heap, preset.load, self._on_loaded)
        self._is_stepping = False
        self.num_steps = 0
        self.busy_ns = 0

    @property
    def num_running(self) -> int:
        return len(self._batch)

    def has_adapter(self, digest: str) -> bool:
        return digest in self._adapter_bytes

    def receive(self, frame: Sequence[commands.WorkerCommand]) -> None:
        """Loads start at once; the rest waits for the end of the step."""
        retired = {c.sequence_id for c in frame if isinstance(c, commands.Retire)}
        for command in frame:
            if isinstance(command, commands.SetBudget):
                self._max_step_tokens = command.max_step_tokens
        kept = [c for c in frame if not (isinstance(c, commands.Admit) and c.sequence_id in retired)]
        for kind in _ORDER:
            self._inbox += [command for command in kept if isinstance(command, kind)]
        self._turn()

    def _on_loaded(self, digest: str) -> None:
        self._loaded.append(digest)
        self._turn()

    def _turn(self) -> None:
        if self._is_stepping:
            self._start_loads()
            return
        self._apply_inbox()
        self._attach_loaded()
        self._start_step()

    def _start_loads(self) -> None:
        """The loader hears of a load while the step loop is busy."""
        waiting = [c for c in self._inbox if isinstance(c, commands.LoadAdapter)]
        if waiting:
            self._inbox = [c for c in self._inbox if not isinstance(c, commands.LoadAdapter)]
            for command in waiting:
                self._load(command)

    # --- steps ---

    def _start_step(self) -> None:
        step = self._batch.next_step(self._max_step_tokens)
        if step is None:
            return
        duration_ns = self._preset.step.step_ns(step.load)
        self._is_stepping = True
        self._heap.after(duration_ns, functools.partial(self._end_step, step, duration_ns))

    def _end_step(self, step: Step, duration_ns: int) -> None:
        self._is_stepping = False
        self.num_steps += 1
        self.busy_ns += duration_ns
        self._report(step, duration_ns)
        self._turn()

    def _report(self, step: Step, duration_ns: int) -> None:
        emissions, ended = self._batch.complete(step)
        for sequence in ended:
            self._give_back(sequence)
        self._send(
            events.StepReported(
                worker_id=self.info.worker_id,
                epoch=self.info.epoch,
                step=self.num_steps,
                emissions=tuple(emissions),
                finishes=tuple(_finish(sequence) for sequence in ended),
                num_rows=step.load.num_decode_rows + step.load.num_prefill_rows,
                num_decode_rows=step.num_decode_rows,
                adapter_digests=step.digests,
                has_base_rows=step.has_base_rows,
                duration_ns=duration_ns,
            )
        )

    # --- commands ---

    def _apply_inbox(self) -> None:
        inbox, self._inbox = self._inbox, []
        for command in inbox:
            match command:
                case commands.Admit():
                    self._admit(command)
                case commands.Grant():
                    self._grant(command)
                case commands.Retire():
                    self._retire(command.sequence_id)
                case commands.LoadAdapter():
                    self._load(command)
                case commands.EvictAdapter():
                    self._evict(command.digest)

    def _admit(self, admit: commands.Admit) -> None:
        assert admit.sequence_id not in self._batch, "a sequence id was used twice"
        assert len(self._batch) < self.info.max_sequences, "admitted without a slot"
        num_pages = num_pages_for(len(admit.prompt_ids) + admit.grant_tokens, self.info.page_size)
        self._take(num_pages)
        for part in admit.adapters:
            assert part.digest in self._adapter_bytes, "admitted without its adapter"
            self._num_users[part.digest] = self._num_users.get(part.digest, 0) + 1
        rank = sum(self._ranks[part.digest] for part in admit.adapters)
        self._batch.add(VirtualSequence(admit, rank=rank, num_pages=num_pages))

    def _grant(self, grant: commands.Grant) -> None:
        sequence = self._batch.get(grant.sequence_id)
        if sequence is None or grant.grant_tokens <= sequence.grant_tokens:
            return
        num_pages = num_pages_for(sequence.num_prompt + grant.grant_tokens, self.info.page_size)
        self._take(num_pages - sequence.num_pages)
        sequence.grant_tokens, sequence.num_pages = grant.grant_tokens, num_pages
        self._batch.resume(sequence)

    def _retire(self, sequence_id: int) -> None:
        sequence = self._batch.remove(sequence_id)
        if sequence is not None:
            self._give_back(sequence)

    def _give_back(self, sequence: VirtualSequence) -> None:
        self._num_free += sequence.num_pages
        for digest in sequence.digests:
            self._num_users[digest] -= 1

    def _take(self, num_pages: int) -> None:
        assert num_pages <= self._num_free, f"{num_pages} pages wanted, {self._num_free} are free"
        self._num_free -= num_pages

    # --- adapters ---

    def _load(self, order: commands.LoadAdapter) -> None:
        assert order.digest not in self._adapter_bytes, "asked for an adapter that is there"
        assert order.digest not in self._loading_pages, "asked for an adapter twice"
        self._loading_pages[order.digest] = order.num_pages
        self._channels.load(order.digest, self._preset.adapter_bytes(self._ranks[order.digest]))

    def _attach_loaded(self) -> None:
        for digest in self._loaded:
            num_pages = self._loading_pages.pop(digest)
            self._take(num_pages)
            self._adapter_pages[digest] = num_pages
            self._adapter_bytes[digest] = self._preset.adapter_bytes(self._ranks[digest])
            self._tell(digest, events.WorkerAdapterState.DEVICE)
        self._loaded.clear()

    def _evict(self, digest: str) -> None:
        assert not self._num_users.get(digest), "evicted while in use"
        self._num_free += self._adapter_pages.pop(digest)
        del self._adapter_bytes[digest]
        self._tell(digest, events.WorkerAdapterState.EVICTED)

    def _tell(self, digest: str, state: events.WorkerAdapterState) -> None:
        self._send(
            events.AdapterChanged(
                worker_id=self.info.worker_id,
                epoch=self.info.epoch,
                digest=digest,
                state=state,
                num_bytes=self._adapter_bytes.get(digest, 0),
            )
        )

    def check(self) -> None:
        """Assert that the pages add up."""
        used = sum(sequence.num_pages for sequence in self._batch) + sum(self._adapter_pages.values())
        assert used + self._num_free == self.info.num_pages, "pages of a virtual worker do not add up"
        assert self._num_free >= 0


def _finish(sequence: VirtualSequence) -> events.SequenceFinish:
    return events.SequenceFinish(sequence_id=sequence.sequence_id, reason=events.WorkerFinish.MAX_TOKENS)
