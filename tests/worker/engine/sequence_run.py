"""Drive an engine and gather what it says about each sequence."""

import dataclasses

from loraplex_worker.engine.command import AdapterWeight, Admit, Sampling, Stop
from loraplex_worker.engine.engine import Engine
from loraplex_worker.engine.report import Emission, Finish, PromptLogprobs, StepReport, TokenLogprobs


@dataclasses.dataclass
class SequenceRun:
    """The output of one sequence, put together as a client would."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    finish: Finish | None = None
    stop_token_id: int | None = None

    def take(self, emission: Emission) -> None:
        assert self.finish is None, "an emission after the end"
        assert emission.first_index == len(self.tokens), "a gap or a repeat"
        assert emission.token_ids or emission.finish
        self.tokens.extend(emission.token_ids)
        if emission.logprobs is not None:
            assert len(emission.logprobs) == len(emission.token_ids)
            self.logprobs.extend(emission.logprobs)
        self.finish = emission.finish
        self.stop_token_id = emission.stop_token_id


def admit(sequence_id: int, prompt: tuple[int, ...] = (1, 2, 3), **changes: object) -> Admit:
    """A greedy Admit; keyword arguments go to Admit, Sampling or Stop by their names."""
    fields: dict[str, object] = {"max_tokens": 8} | changes
    of_stop = {name: fields.pop(name) for name in ("max_tokens", "min_tokens", "stop_token_ids") if name in fields}
    of_admit = {
        name: fields.pop(name)
        for name in ("emitted_ids", "grant_tokens", "adapters", "prefix_namespace")
        if name in fields
    }
    stop = Stop(**of_stop)  # type: ignore[arg-type]
    of_admit.setdefault("grant_tokens", stop.max_tokens)
    return Admit(
        sequence_id=sequence_id,
        prompt_ids=prompt,
        sampling=Sampling(**fields),  # type: ignore[arg-type]
        stop=stop,
        **of_admit,  # type: ignore[arg-type]
    )


def using(*digests: str, weight: float = 1.0) -> tuple[AdapterWeight, ...]:
    return tuple(AdapterWeight(digest=digest, weight=weight) for digest in digests)


@dataclasses.dataclass
class EngineRun:
    """Everything that an engine reported."""

    engine: Engine
    sequences: dict[int, SequenceRun] = dataclasses.field(default_factory=dict)
    prompts: dict[int, PromptLogprobs] = dataclasses.field(default_factory=dict)
    reports: list[StepReport] = dataclasses.field(default_factory=list)
    hits: dict[int, int] = dataclasses.field(default_factory=dict)
    """Tokens that each sequence found in its latest life, where it found any."""

    def step(self) -> StepReport | None:
        report = self.engine.step()
        self.engine.check()
        if report is not None:
            self.reports.append(report)
            for emission in report.emissions:
                self.sequences.setdefault(emission.sequence_id, SequenceRun()).take(emission)
            for hit in report.prefix_hits:
                self.hits[hit.sequence_id] = hit.num_tokens
            for prompt in report.prompt_logprobs:
                assert prompt.sequence_id not in self.prompts
                self.prompts[prompt.sequence_id] = prompt
            assert report.pages == self.engine.page_counts()
        return report

    def until_idle(self, max_steps: int = 500) -> "EngineRun":
        for _ in range(max_steps):
            if self.step() is None:
                assert not self.engine.has_work()
                return self
        raise AssertionError(f"still busy after {max_steps} steps")


def run_alone(engine: Engine, command: Admit) -> SequenceRun:
    """The output of one sequence on an engine that has nothing else to do."""
    engine.apply(command)
    return EngineRun(engine).until_idle().sequences[command.sequence_id]
