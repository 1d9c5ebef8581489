"""What the choice of the next tokens depends on: parameters of rows in device memory, and what the rows hold so far."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

PROMPT_BIT = 1 << 30
"""In ``History.counts``: the token is in the prompt. The bits below count the output."""
_MAX_SEED = (1 << 64) - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowSampling:
    """How the next token of one sequence is chosen. The defaults are greedy decoding."""

    temperature: float = 0.0
    """0 = greedy: the highest logit, ties to the lowest id."""
    top_k: int = 0
    """0 = off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    """Unsigned 64 bits."""
    position: int = 0
    """Index of the next token in the output."""
    history_slot: int = -1
    """Row of ``History.counts``; -1 where no penalty is set."""
    mask_row: int = -1
    """Row of the bit masks; -1 = every token is allowed."""
    bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit); a token may be named twice."""

    @property
    def has_penalty(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRows:
    """N rows' parameters, in device memory."""

    temperature: Tensor
    """[N] float32."""
    top_k: Tensor
    """[N] int32."""
    top_p: Tensor
    """[N] float64: a share is compared with sums of that width."""
    min_p_floor: Tensor
    """[N] float32: log(min_p)."""
    penalties: Tensor
    """[N, 3] float32: repetition, presence, frequency."""
    seeds: Tensor
    """[N] int64 that holds the unsigned bits."""
    positions: Tensor
    """[N] int64."""
    history_slots: Tensor
    """[N] int32."""
    mask_rows: Tensor
    """[N] int32."""
    bias_counts: Tensor
    """[N] int32."""
    bias_ids: Tensor
    """[N, most] int32."""
    bias_values: Tensor
    """[N, most] float32."""
    adjusts: Tensor
    """[N] int32: 1 where penalties, bias or a mask change the logits."""
    any_adjusts: bool
    names_history: bool
    names_masks: bool

    @classmethod
    def of(cls, rows: Sequence[RowSampling], *, device: torch.device | str = "cpu") -> "SamplingRows":
        """Put ``rows`` on the device.

        Raises:
            ValueError: a seed that is not unsigned 64 bits, or a penalty without a history.
        """
        for row in rows:
            if not 0 <= row.seed <= _MAX_SEED or (row.has_penalty and row.history_slot < 0):
                raise ValueError(f"seed {row.seed} must be unsigned 64 bits, and a penalty needs a history slot: {row}")
        most = max([len(row.bias) for row in rows], default=0)
        padded = [[*row.bias, *[(0, 0.0)] * (most - len(row.bias))] for row in rows]
        penalties = [[row.repetition_penalty, row.presence_penalty, row.frequency_penalty] for row in rows]
        adjusts = [row.has_penalty or row.mask_row >= 0 or bool(row.bias) for row in rows]

        def column(values: list[int] | list[float] | list[bool], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device)

        def table(values: list[list[float]], dtype: torch.dtype, width: int) -> Tensor:
            return torch.tensor(values, dtype=dtype).view(len(rows), width).to(device)

        return cls(
            temperature=column([row.temperature for row in rows], torch.float32),
            top_k=column([row.top_k for row in rows], torch.int32),
            top_p=column([row.top_p for row in rows], torch.float64),
            min_p_floor=column([math.log(row.min_p) if row.min_p else -math.inf for row in rows], torch.float32),
            penalties=table(penalties, torch.float32, 3),
            seeds=column([row.seed - (row.seed >> 63 << 64) for row in rows], torch.int64),
            positions=column([row.position for row in rows], torch.int64),
            history_slots=column([row.history_slot for row in rows], torch.int32),
            mask_rows=column([row.mask_row for row in rows], torch.int32),
            bias_counts=column([len(row.bias) for row in rows], torch.int32),
            bias_ids=table([[token for token, _ in bias] for bias in padded], torch.int32, most),
            bias_values=table([[value for _, value in bias] for bias in padded], torch.float32, most),
            adjusts=column(adjusts, torch.int32),
            any_adjusts=any(adjusts),
            names_history=any(row.history_slot >= 0 for row in rows),
            names_masks=any(row.mask_row >= 0 for row in rows),
        )


class History:
    """Which tokens sequences hold, and how often their output does: 4 bytes a token of the vocabulary and slot."""

    def __init__(self, *, num_slots: int, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=device)
        """[slots, V]."""

    def start(self, slot: int, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        """Make ``slot`` that of a sequence with these tokens."""
        row = self.counts[slot]
        row.zero_()
        output = torch.tensor(output_ids, dtype=torch.int64, device=row.device)
        row.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
        prompt = torch.tensor(sorted(set(prompt_ids)), dtype=torch.int64, device=row.device)
        row[prompt] += PROMPT_BIT


def mask_bits(vocab_size: int, *, allowed: Sequence[int] = (), banned: Sequence[int] = ()) -> Tensor:
    """[ceil(V / 32)] int32, bit i % 32 of word i // 32 set where token i may be chosen; no ``allowed`` means all."""
    words = -(-vocab_size // 32)
    bits = torch.zeros(words * 32, dtype=torch.int64)
    bits[list(allowed) if allowed else slice(0, vocab_size)] = 1
    bits[list(banned)] = 0
    values = (bits.view(words, 32) << torch.arange(32)).sum(1)
    return torch.where(values >= 1 << 31, values - (1 << 32), values).to(torch.int32)
