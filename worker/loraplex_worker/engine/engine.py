"""The worker's engine: commands in, one step at a time, reports out. Synchronous, on one thread, without I/O."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator

import torch

from loraplex_worker.engine.admission import check_admit
from loraplex_worker.engine.attached_adapters import AttachedAdapters
from loraplex_worker.engine.batch_builder import BatchBuilder, Plan
from loraplex_worker.engine.command import Admit, AttachAdapter, Command, EvictAdapter, Grant, Reset, Retire, SetBudget
from loraplex_worker.engine.engine_config import EngineConfig
from loraplex_worker.engine.language_model import LanguageModel
from loraplex_worker.engine.logprob_requests import chosen_logprobs, judge_prompts, take_prompt_logprobs
from loraplex_worker.engine.page_pool import AdapterOwner, KvOwner, OutOfPages
from loraplex_worker.engine.prefix_cache import PrefixCache
from loraplex_worker.engine.refusal import CommandRefused, RefusalReason
from loraplex_worker.engine.report import Emission, Finish, PageCounts, PromptLogprobs, StepReport, TokenLogprobs
from loraplex_worker.engine.sampler import sample
from loraplex_worker.engine.sequence import Sequence
from loraplex_worker.engine.standing_batch import StandingBatch
from loraplex_worker.model.decoder import Decoder
from loraplex_worker.model.kv_cache import KvCache


class Engine:
    """Owns the standing batch, the page pool with its prefix cache, and the attached adapters. One thread drives it."""

    def __init__(self, model: LanguageModel, kv: KvCache, config: EngineConfig) -> None:
        """Check that the parts fit.

        Raises:
            ValueError: ``kv`` or the model's positions are smaller than ``config`` says.
        """
        if (kv.num_pages, kv.page_size) != (config.num_pages, config.page_size):
            raise ValueError(f"the KV cache has {kv.num_pages} pages of {kv.page_size}, the config differs: {config}")
        if config.max_context_tokens > model.config.max_position_embeddings:
            raise ValueError(
                f"max_context_tokens is {config.max_context_tokens}; "
                f"the model has {model.config.max_position_embeddings} positions"
            )
        self.config = config
        self._model = model
        self._kv = kv
        self._prefixes = PrefixCache(kv)
        self._pool = self._prefixes.pool
        self._adapters = AttachedAdapters()
        self._standing = StandingBatch()
        self._builder = BatchBuilder(
            page_size=config.page_size,
            max_prompt_logprob_rows=config.max_prompt_logprob_rows,
            device=kv.storage.device,
        )
        self._max_step_tokens = config.max_step_tokens
        self._num_admitted = 0
        self._num_steps = 0

    @classmethod
    def for_decoder(cls, decoder: Decoder, config: EngineConfig, *, device: torch.device | str = "cpu") -> "Engine":
        """An engine with a KV cache of the decoder's shape and dtype on ``device``."""
        shape = decoder.config
        kv = KvCache(
            num_layers=shape.num_layers,
            num_pages=config.num_pages,
            page_size=config.page_size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=decoder.dtype,
            device=device,
        )
        return cls(decoder, kv, config)

    @property
    def num_steps(self) -> int:
        return self._num_steps

    @property
    def num_sequences(self) -> int:
        """Live sequences, resting ones included."""
        return len(self._standing)

    def attached_digests(self) -> frozenset[str]:
        return self._adapters.digests()

    def page_counts(self) -> PageCounts:
        return self._pool.counts()

    def has_work(self) -> bool:
        """Whether ``step`` would compute something."""
        return any(sequence.is_granted for sequence in self._standing.in_admission_order())

    def apply(self, command: Command) -> None:
        """Carry out one command.

        Raises:
            CommandRefused: it cannot be; the engine is as it was.
        """
        match command:
            case Grant():
                self._grant(command)
            case Admit():
                self._admit(command)
            case Retire():
                sequence = self._standing.get(command.sequence_id)
                if sequence is not None:
                    self._drop(sequence)
            case AttachAdapter():
                self._attach(command)
            case EvictAdapter():
                self._evict(command)
            case SetBudget():
                self._set_budget(command)
            case Reset():
                self._reset()

    def _admit(self, admit: Admit) -> None:
        sequence_id = admit.sequence_id
        refuse = functools.partial(CommandRefused, sequence_id=sequence_id)
        if sequence_id in self._standing:
            raise refuse(RefusalReason.SEQUENCE_EXISTS, f"sequence {sequence_id} is live")
        if len(self._standing) >= self.config.max_sequences:
            raise refuse(RefusalReason.TOO_MANY_SEQUENCES, f"{self.config.max_sequences} sequences are live")
        for adapter in admit.adapters:
            if adapter.digest not in self._adapters:
                message = f"adapter {adapter.digest} is not attached"
                raise refuse(RefusalReason.ADAPTER_NOT_ATTACHED, message, digest=adapter.digest)
        check_admit(admit, self.config, self._model.config.vocab_size)
        if not self.config.has_prefix_cache:
            admit = dataclasses.replace(admit, prefix_namespace=b"")
        sequence = Sequence(admit, ordinal=self._num_admitted, page_size=self.config.page_size)
        with _refusing_out_of_pages(sequence_id=sequence_id):
            self._prefixes.take(sequence, self._num_kv_pages(len(admit.prompt_ids), admit.grant_tokens))
        self._adapters.hold(admit.adapters)
        self._standing.add(sequence)
        self._num_admitted += 1

    def _grant(self, grant: Grant) -> None:
        sequence = self._standing.get(grant.sequence_id)
        if sequence is None or grant.grant_tokens <= sequence.grant_tokens:
            return
        num_pages = self._num_kv_pages(sequence.num_prompt, grant.grant_tokens) - len(sequence.page_ids)
        if num_pages:
            with _refusing_out_of_pages(sequence_id=sequence.sequence_id):
                sequence.page_ids += tuple(self._pool.take(KvOwner(sequence.sequence_id), num_pages))
        sequence.grant_tokens = grant.grant_tokens

    def _attach(self, attach: AttachAdapter) -> None:
        digest = attach.digest
        if digest in self._adapters:
            raise CommandRefused(RefusalReason.ADAPTER_EXISTS, f"adapter {digest} is attached", digest=digest)
        if attach.num_pages < 0:
            message = f"num_pages is {attach.num_pages}; it must not be negative"
            raise CommandRefused(RefusalReason.FIELD_INVALID, message, digest=digest)
        with _refusing_out_of_pages(digest=digest):
            self._pool.take(AdapterOwner(digest), attach.num_pages)
        self._adapters.attach(digest, attach.weights)
        self._builder.forget_adapters()

    def _evict(self, evict: EvictAdapter) -> None:
        digest = evict.digest
        if digest not in self._adapters:
            return
        num_users = self._adapters.num_users(digest)
        if num_users:
            message = f"adapter {digest} is in use by {num_users} live sequences"
            raise CommandRefused(RefusalReason.ADAPTER_IN_USE, message, digest=digest)
        self._adapters.detach(digest)
        self._pool.give_back(AdapterOwner(digest))
        self._builder.forget_adapters()

    def _set_budget(self, budget: SetBudget) -> None:
        if budget.max_step_tokens < 1:
            message = f"max_step_tokens is {budget.max_step_tokens}; it must be at least 1"
            raise CommandRefused(RefusalReason.FIELD_INVALID, message)
        self._max_step_tokens = budget.max_step_tokens

    def _reset(self) -> None:
        for sequence in tuple(self._standing.in_admission_order()):
            self._drop(sequence)
        for digest in self._adapters.digests():
            self._evict(EvictAdapter(digest=digest))
        self._max_step_tokens = self.config.max_step_tokens

    def step(self) -> StepReport | None:
        """Compute one step of every sequence that can go on.

        Returns:
            What happened, or None where no sequence can go on.
        """
        start_ns = time.perf_counter_ns()
        plan = self._builder.build(self._standing, self._adapters, self._prefixes, self._max_step_tokens)
        if plan is None:
            return None
        with torch.inference_mode():
            emissions, prompt_logprobs = self._compute(plan)
        self._num_steps += 1
        return StepReport(
            step=self._num_steps,
            emissions=tuple(emissions),
            prompt_logprobs=tuple(prompt_logprobs),
            num_rows=plan.num_rows,
            num_decode_rows=len(plan.decoding),
            num_prefill_rows=plan.num_rows - len(plan.decoding),
            adapter_digests=plan.adapter_digests,
            has_base_rows=plan.has_base_rows,
            pages=self._pool.counts(),
            duration_ns=time.perf_counter_ns() - start_ns,
            prefix_hits=plan.prefix_hits,
        )

    def _compute(self, plan: Plan) -> tuple[list[Emission], list[PromptLogprobs]]:
        logits = self._model.forward(plan.batch, self._kv)
        num_sampled = len(plan.sampled)
        tokens = sample(logits[:num_sampled], [sequence.sampling for sequence in plan.sampled])
        logprobs = chosen_logprobs(logits, plan.sampled, tokens)
        # Before num_computed moves: which prompt tokens the rows judge depends on it.
        broken = judge_prompts(plan.judged, logits[num_sampled:])
        for sequence in plan.decoding:
            sequence.num_computed += 1
        for share in plan.prefilling:
            share.sequence.num_computed += share.num_rows
        # Before any of them ends and gives its pages back.
        self._publish(plan, tokens, broken)
        emissions = [self._end(sequence, Finish.NUMERICAL) for sequence in broken]
        prompt_logprobs: list[PromptLogprobs] = []
        for row, (sequence, token) in enumerate(zip(plan.sampled, tokens, strict=True)):
            if sequence in broken:
                continue
            if sequence.prompt_logprobs is not None and token is not None:
                prompt_logprobs.append(take_prompt_logprobs(sequence))
            emissions.append(self._settle(sequence, token, logprobs.get(row)))
        return emissions, prompt_logprobs

    def _publish(self, plan: Plan, tokens: list[int | None], broken: list[Sequence]) -> None:
        """What has logits that are not finite, or no token for another reason, leaves nothing for others."""
        failed = {*broken, *(sequence for sequence, token in zip(plan.sampled, tokens, strict=True) if token is None)}
        for sequence in failed:
            self._prefixes.withdraw(sequence)
        computed = (*plan.decoding, *(share.sequence for share in plan.prefilling))
        self._prefixes.publish(sequence for sequence in computed if sequence not in failed)

    def _settle(self, sequence: Sequence, token: int | None, logprobs: TokenLogprobs | None) -> Emission:
        if token is None:
            return self._end(sequence, Finish.NUMERICAL)
        first_index = sequence.num_output
        finish = sequence.append(token, max_context_tokens=self.config.max_context_tokens)
        if finish is not None:
            self._drop(sequence)
        is_stop = finish is Finish.STOP_TOKEN
        kept = (logprobs,) if logprobs is not None else None
        return Emission(
            sequence_id=sequence.sequence_id,
            first_index=first_index,
            token_ids=() if is_stop else (token,),
            logprobs=None if is_stop else kept,
            finish=finish,
            stop_token_id=token if is_stop else None,
        )

    def _end(self, sequence: Sequence, finish: Finish) -> Emission:
        self._drop(sequence)
        return Emission(sequence_id=sequence.sequence_id, first_index=sequence.num_output, token_ids=(), finish=finish)

    def _drop(self, sequence: Sequence) -> None:
        self._standing.remove(sequence)
        self._adapters.release(sequence.adapters)
        self._pool.give_back(KvOwner(sequence.sequence_id))

    def _num_kv_pages(self, num_prompt: int, grant_tokens: int) -> int:
        return -(-(num_prompt + grant_tokens) // self.config.page_size)

    def check(self) -> None:
        """Assert every invariant of the ledger and the standing batch. O(pages + tokens); for tests and idle times."""
        self._prefixes.check()
        num_users = dict.fromkeys(self._adapters.digests(), 0)
        num_kv_pages = 0
        for sequence in self._standing.in_admission_order():
            self._check_sequence(sequence)
            num_kv_pages += len(sequence.page_ids)
            for adapter in sequence.adapters:
                num_users[adapter.digest] += 1
        assert num_kv_pages == self._pool.counts().kv, "pages of a sequence that is gone are still held"
        for digest, count in num_users.items():
            assert self._adapters.num_users(digest) == count, digest

    def _check_sequence(self, sequence: Sequence) -> None:
        assert sequence.page_ids == self._pool.pages_of(KvOwner(sequence.sequence_id)), sequence.sequence_id
        assert len(sequence.page_ids) == self._num_kv_pages(sequence.num_prompt, sequence.grant_tokens)
        assert sequence.num_computed < len(sequence.tokens) < self.config.max_context_tokens
        assert sequence.num_output <= min(sequence.grant_tokens, sequence.stop.max_tokens)
        assert sequence.num_output == sequence.sampling.num_output


@contextlib.contextmanager
def _refusing_out_of_pages(*, sequence_id: int | None = None, digest: str | None = None) -> Iterator[None]:
    try:
        yield
    except OutOfPages as error:
        raise CommandRefused(RefusalReason.OUT_OF_PAGES, str(error), sequence_id=sequence_id, digest=digest) from error
