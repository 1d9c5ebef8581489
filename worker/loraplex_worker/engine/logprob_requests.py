"""Which rows of a step's logits become logprobs, and of which sequence."""

from torch import Tensor

from loraplex_worker.engine.batch_builder import Share
from loraplex_worker.engine.logprobs import token_logprobs
from loraplex_worker.engine.report import PromptLogprobs, TokenLogprobs
from loraplex_worker.engine.sequence import Sequence


def chosen_logprobs(
    logits: Tensor, sequences: tuple[Sequence, ...], tokens: list[int | None]
) -> dict[int, TokenLogprobs]:
    """By row, for the sequences that asked."""
    wanted = [
        (row, token, sequence.top_logprobs)
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))
        if sequence.top_logprobs is not None and token is not None
    ]
    if not wanted:
        return {}
    rows, chosen, num_top = (list(column) for column in zip(*wanted, strict=True))
    return dict(zip(rows, token_logprobs(logits[rows], chosen, num_top), strict=True))


def judge_prompts(shares: tuple[Share, ...], logits: Tensor) -> list[Sequence]:
    """Append the logprobs of prompt tokens to their sequences; returns those whose logits are not finite."""
    broken: list[Sequence] = []
    start = 0
    for share in shares:
        sequence, stop = share.sequence, start + share.num_prompt_logits
        rows, start = logits[start:stop], stop
        if not bool(rows.sum(dim=1).isfinite().all()):
            broken.append(sequence)
            continue
        assert sequence.prompt_logprobs is not None
        first = sequence.num_computed + 1
        judged = sequence.tokens[first : first + len(rows)]
        num_top = sequence.sampling.sampling.prompt_logprobs or 0
        sequence.prompt_logprobs.extend(token_logprobs(rows, judged, [num_top] * len(rows)))
    return broken


def take_prompt_logprobs(sequence: Sequence) -> PromptLogprobs:
    """The gathered entries, once."""
    entries = sequence.prompt_logprobs
    assert entries is not None
    assert len(entries) == sequence.num_prompt
    sequence.prompt_logprobs = None
    return PromptLogprobs(sequence_id=sequence.sequence_id, entries=tuple(entries))
