"""Answers in the words of vLLM's offline interface."""

import dataclasses
from typing import Final

from loraplex_client.delta import TokenLogprobs
from loraplex_client.finish import Finish, FinishReason
from loraplex_client.lora_request import LoRARequest
from loraplex_client.output import Output, SequenceOutput
from loraplex_client.sampling_params import SamplingParams

_REASONS: Final = {
    FinishReason.EOS: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.MAX_TOKENS: "length",
    FinishReason.CONTEXT_LIMIT: "length",
    FinishReason.TIME_LIMIT: "time_limit",
    FinishReason.CANCELLED: "abort",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate's log-probability. ``decoded_token`` stays None: ask ``LLM.client.detokenize``."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


Logprobs = list[dict[int, Logprob]]


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of the n sequences. ``token_ids`` end before the token that stopped it; vLLM lists that one too."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: Logprobs | None
    finish_reason: str | None = None
    """``stop``, ``length``, ``abort`` (cancelled) or ``time_limit``."""
    stop_reason: int | str | None = None
    """The stop string or stop id that matched; None at the model's own end."""
    lora_request: LoRARequest | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclasses.dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    lora_request: LoRARequest | None = None
    num_cached_tokens: int | None = None


def request_output(
    output: Output,
    *,
    prompt: str | None,
    prompt_token_ids: list[int],
    sampling: SamplingParams,
    lora_request: LoRARequest | None,
) -> RequestOutput:
    """The same answer under vLLM's names."""
    has_logprobs = sampling.logprobs is not None
    completions = [_completion(sequence, has_logprobs, lora_request) for sequence in output.sequences]
    return RequestOutput(
        request_id=output.request_id,
        prompt=prompt,
        prompt_token_ids=prompt_token_ids,
        prompt_logprobs=_prompt_logprobs(output, prompt_token_ids) if sampling.prompt_logprobs is not None else None,
        outputs=completions,
        finished=True,
        lora_request=lora_request,
        num_cached_tokens=output.sequences[0].finish.usage.num_cached_tokens,
    )


def _completion(sequence: SequenceOutput, has_logprobs: bool, lora: LoRARequest | None) -> CompletionOutput:
    logprobs = [
        _candidates(token_id, entry) for token_id, entry in zip(sequence.token_ids, sequence.logprobs, strict=False)
    ]
    return CompletionOutput(
        index=sequence.index,
        text=sequence.text,
        token_ids=list(sequence.token_ids),
        cumulative_logprob=sum(entry.logprob for entry in sequence.logprobs) if has_logprobs else None,
        logprobs=logprobs if has_logprobs else None,
        finish_reason=_REASONS[sequence.finish.reason],
        stop_reason=_stop_reason(sequence.finish),
        lora_request=lora,
    )


def _stop_reason(finish: Finish) -> int | str | None:
    if finish.reason is FinishReason.STOP_STRING:
        return finish.stop_string
    return finish.stop_token_id if finish.reason is FinishReason.STOP_TOKEN else None


def _prompt_logprobs(output: Output, token_ids: list[int]) -> list[dict[int, Logprob] | None]:
    entries = zip(token_ids, output.prompt.logprobs, strict=False)
    return [None if entry is None else _candidates(token_id, entry) for token_id, entry in entries]


def _candidates(token_id: int, entry: TokenLogprobs) -> dict[int, Logprob]:
    """The chosen token first, then the alternatives, best first."""
    found = {token_id: Logprob(entry.logprob, entry.rank)}
    for rank, (other, logprob) in enumerate(entry.top, start=1):
        found.setdefault(other, Logprob(logprob, rank))
    return found
