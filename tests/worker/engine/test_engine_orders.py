"""Every order of commands and steps that Hypothesis can think of, against a plain ledger and each sequence alone.

The sequences share prefixes; the ledger knows nothing of it, and the outputs are those without. Each page is filled
with NaN when it is given to somebody, so that one which somebody else still reads shows.
"""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from tests.worker.engine.fake_decoder import fake_weights, small_engine
from tests.worker.engine.sequence_run import EngineRun, SequenceRun, run_alone

from loraplex_worker.engine.command import (
    AdapterWeight,
    Admit,
    AttachAdapter,
    EvictAdapter,
    Grant,
    Retire,
    Sampling,
    SetBudget,
    Stop,
)
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason
from loraplex_worker.engine.report import PrefixHit

_PAGE_SIZE = 4
_NUM_PAGES = 32
_DIGESTS = {"a": 3, "b": 5, "c": 11}

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    frequency_penalty=st.sampled_from([0.0, 0.6]),
    seed=st.integers(0, 2**64 - 1),
    top_logprobs=st.sampled_from([None, 2]),
    prompt_logprobs=st.sampled_from([None, None, 1]),
)
stops = st.builds(
    Stop,
    stop_token_ids=st.sampled_from([(), (7, 8, 9)]),
    max_tokens=st.integers(1, 9),
    min_tokens=st.sampled_from([0, 1]),
)
adapter_lists = st.lists(
    st.builds(AdapterWeight, digest=st.sampled_from(sorted(_DIGESTS)), weight=st.sampled_from([1.0, 0.5])),
    max_size=2,
    unique_by=lambda adapter: adapter.digest,
).map(tuple)


STEM = (9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 12)
prompts = st.one_of(
    st.lists(st.integers(0, 39), min_size=1, max_size=22),
    # Beginnings in common, that end within a page and between two.
    st.builds(
        lambda length, tail: [*STEM[:length], *tail],
        st.integers(3, 12),
        st.lists(st.integers(0, 1), min_size=1, max_size=10),
    ),
).map(tuple)


@dataclasses.dataclass
class Expected:
    """What a scheduler knows of one sequence."""

    admit: Admit
    grant_tokens: int

    @property
    def num_pages(self) -> int:
        return -(-(len(self.admit.prompt_ids) + self.grant_tokens) // _PAGE_SIZE)


def _alone(command: Admit) -> SequenceRun:
    """The output of the sequence with nothing else around it and no break."""
    engine = small_engine(num_pages=_NUM_PAGES, max_context_tokens=30)
    for digest, fingerprint in _DIGESTS.items():
        engine.apply(AttachAdapter(digest=digest, weights=fake_weights(fingerprint), num_pages=0))
    whole = dataclasses.replace(command, emitted_ids=(), grant_tokens=command.stop.max_tokens, prefix_namespace=b"")
    return run_alone(engine, whole)


class EngineOrders(RuleBasedStateMachine):
    ids = Bundle("ids")

    @initialize()
    def start(self) -> None:
        self.run = EngineRun(
            small_engine(num_pages=_NUM_PAGES, max_sequences=5, max_context_tokens=30, max_prompt_logprob_rows=3)
        )
        self.live: dict[int, Expected] = {}
        self.preempted: dict[int, Admit] = {}
        self.attached: dict[str, int] = {}
        self.lives: list[Admit] = []
        """Every admission so far; a resumed sequence has several."""
        for digest in _DIGESTS:
            self.attach(digest, 1)
        self.next_id = 1

    @property
    def num_free(self) -> int:
        return _NUM_PAGES - sum(one.num_pages for one in self.live.values()) - sum(self.attached.values())

    def _apply(self, command: object, refusal: RefusalReason | None) -> bool:
        reason = None
        try:
            self.run.engine.apply(command)  # type: ignore[arg-type]
        except CommandRefused as error:
            reason = error.reason
        assert reason is refusal, command
        return reason is None

    def _refusal_of(self, command: Admit) -> RefusalReason | None:
        if command.sequence_id in self.live:
            return RefusalReason.SEQUENCE_EXISTS
        if len(self.live) >= 5:
            return RefusalReason.TOO_MANY_SEQUENCES
        if any(adapter.digest not in self.attached for adapter in command.adapters):
            return RefusalReason.ADAPTER_NOT_ATTACHED
        if Expected(command, command.grant_tokens).num_pages > self.num_free:
            return RefusalReason.OUT_OF_PAGES
        return None

    @rule(
        target=ids,
        prompt=prompts,
        adapters=adapter_lists,
        sampling=samplings,
        stop=stops,
        grant_tokens=st.sampled_from([0, 2, 5, 9, 9]),
        prefix_namespace=st.sampled_from([b"red", b"red", b"blue", b""]),
    )
    def admit(
        self,
        prompt: tuple[int, ...],
        adapters: tuple[AdapterWeight, ...],
        sampling: Sampling,
        stop: Stop,
        grant_tokens: int,
        prefix_namespace: bytes,
    ) -> int:
        command = Admit(
            sequence_id=self.next_id,
            prompt_ids=prompt,
            adapters=adapters,
            sampling=sampling,
            stop=stop,
            grant_tokens=grant_tokens,
            prefix_namespace=prefix_namespace,
        )
        self.next_id += 1
        if self._apply(command, self._refusal_of(command)):
            self.live[command.sequence_id] = Expected(command, grant_tokens)
            self.lives.append(command)
        return command.sequence_id

    @rule(sequence_id=ids)
    def admit_a_live_id_again(self, sequence_id: int) -> None:
        if sequence_id in self.live:
            self._apply(self.live[sequence_id].admit, RefusalReason.SEQUENCE_EXISTS)

    @rule(sequence_id=ids, grant_tokens=st.integers(1, 12))
    def grant(self, sequence_id: int, grant_tokens: int) -> None:
        expected = self.live.get(sequence_id)
        command = Grant(sequence_id=sequence_id, grant_tokens=grant_tokens)
        if expected is None or grant_tokens <= expected.grant_tokens:
            self._apply(command, None)
            return
        more = dataclasses.replace(expected, grant_tokens=grant_tokens)
        fits = more.num_pages - expected.num_pages <= self.num_free
        if self._apply(command, None if fits else RefusalReason.OUT_OF_PAGES):
            self.live[sequence_id] = more

    def preempt(self, sequence_id: int) -> None:
        self._apply(Retire(sequence_id=sequence_id), None)
        expected = self.live.pop(sequence_id, None)
        if expected is not None:
            self.preempted[sequence_id] = expected.admit

    @precondition(lambda self: len(self.live) > 3)
    @rule(sequence_id=consumes(ids))
    def cancel(self, sequence_id: int) -> None:
        self._apply(Retire(sequence_id=sequence_id), None)
        self.live.pop(sequence_id, None)
        self.preempted.pop(sequence_id, None)

    @precondition(lambda self: self.preempted)
    @rule(data=st.data(), more=st.integers(0, 4))
    def resume(self, data: st.DataObject, more: int) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.preempted)))
        emitted = tuple(self._output(sequence_id).tokens)
        grant_tokens = len(emitted) + more
        command = dataclasses.replace(self.preempted[sequence_id], emitted_ids=emitted, grant_tokens=grant_tokens)
        if self._apply(command, self._refusal_of(command)):
            self.live[sequence_id] = Expected(command, grant_tokens)
            self.lives.append(command)
            del self.preempted[sequence_id]

    @rule(digest=st.sampled_from(sorted(_DIGESTS)), num_pages=st.integers(0, 6))
    def attach(self, digest: str, num_pages: int) -> None:
        refusal = None
        if digest in self.attached:
            refusal = RefusalReason.ADAPTER_EXISTS
        elif num_pages > self.num_free:
            refusal = RefusalReason.OUT_OF_PAGES
        command = AttachAdapter(digest=digest, weights=fake_weights(_DIGESTS[digest]), num_pages=num_pages)
        if self._apply(command, refusal):
            self.attached[digest] = num_pages

    @rule(digest=st.sampled_from(sorted(_DIGESTS)))
    def evict(self, digest: str) -> None:
        used = any(adapter.digest == digest for one in self.live.values() for adapter in one.admit.adapters)
        if self._apply(EvictAdapter(digest=digest), RefusalReason.ADAPTER_IN_USE if used else None):
            self.attached.pop(digest, None)

    @rule(max_step_tokens=st.integers(1, 20))
    def set_budget(self, max_step_tokens: int) -> None:
        self._apply(SetBudget(max_step_tokens=max_step_tokens), None)

    @rule()
    def step_once(self) -> None:
        self.step(1)

    @rule(data=st.data())
    def step_and_preempt(self, data: st.DataObject) -> None:
        self.step(data.draw(st.integers(1, 5)))
        if self.live:
            self.preempt(data.draw(st.sampled_from(sorted(self.live))))

    @rule(num_steps=st.integers(2, 8))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            had_work = self.run.engine.has_work()
            report = self.run.step()
            assert (report is not None) == had_work
            for hit in report.prefix_hits if report else ():
                self._check_hit(hit)
            for emission in report.emissions if report else ():
                assert emission.sequence_id in self.live, "a sequence that is not live emitted"
                if emission.finish is not None:
                    command = self.live.pop(emission.sequence_id).admit
                    assert self.run.sequences[emission.sequence_id] == _alone(command)

    def _check_hit(self, hit: PrefixHit) -> None:
        """Somebody of the same namespace, adapters and weights has had these very tokens."""
        finder = next(life for life in reversed(self.lives) if life.sequence_id == hit.sequence_id)
        tokens = self._tokens(finder)
        assert 0 < hit.num_tokens < len(tokens)
        assert hit.num_tokens % _PAGE_SIZE == 0
        assert finder.prefix_namespace
        assert any(
            (life.prefix_namespace, life.adapters) == (finder.prefix_namespace, finder.adapters)
            and self._tokens(life)[: hit.num_tokens] == tokens[: hit.num_tokens]
            for life in self.lives
            if life is not finder
        ), "it found what nobody had computed"

    def _tokens(self, command: Admit) -> tuple[int, ...]:
        """Of prompt and output so far."""
        return command.prompt_ids + tuple(self._output(command.sequence_id).tokens)

    def _output(self, sequence_id: int) -> SequenceRun:
        return self.run.sequences.setdefault(sequence_id, SequenceRun())

    @invariant()
    def the_ledger_equals_the_schedulers(self) -> None:
        if not hasattr(self, "run"):
            return
        self.run.engine.check()
        counts = self.run.engine.page_counts()
        assert counts.free == self.num_free
        assert counts.adapter == sum(self.attached.values())
        assert counts.free + counts.kv + counts.adapter == counts.total == _NUM_PAGES
        assert self.run.engine.num_sequences == len(self.live)

    @invariant()
    def outputs_stay_within_their_grant(self) -> None:
        for sequence_id, expected in getattr(self, "live", {}).items():
            assert len(self._output(sequence_id).tokens) <= expected.grant_tokens
            assert self._output(sequence_id).finish is None

    def teardown(self) -> None:
        if not hasattr(self, "run"):
            return
        for sequence_id in list(self.live):
            self._apply(Retire(sequence_id=sequence_id), None)
        for digest in list(self.attached):
            self._apply(EvictAdapter(digest=digest), None)
        assert self.run.engine.page_counts().free == _NUM_PAGES


TestEngineOrders = pytest.mark.slow(EngineOrders.TestCase)
TestEngineOrders.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
