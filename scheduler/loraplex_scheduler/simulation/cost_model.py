"""How long a step and an adapter load take on a virtual worker.

    step = overhead + max(weights, compute) + kv + adapters        (one after the other, as on a GPU)
    step = overhead + max(weights + kv + adapters, compute)        (reads hidden behind computing, as on a CPU)

    compute  = decode rows x decode_row + prefill rows x prefill_row
               + LoRA rows x lora_row + (sum of the ranks of all rows) x lora_rank_row
    kv       = tokens of context that the rows attend to x kv_token
    adapters = bytes of the distinct adapters of the step x adapter_byte, + lora_step if there are any

The form is that of the roofline in the project's performance notes (3.2 and 3.3); the presets hold the figures.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class StepLoad:
    """What one step computes."""

    num_decode_rows: int
    num_prefill_rows: int
    num_lora_rows: int
    num_rank_rows: int
    """Each row counts as often as the ranks of its adapters."""
    num_kv_tokens: int
    """Context of each decode row, and of each prefill chunk at its end."""
    num_adapter_bytes: int
    """Of the distinct adapters, at their true ranks."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """All in nanoseconds; fractions are rounded at the end, so that virtual time is whole."""

    overhead_ns: float
    """Host work and launches of a step."""
    weights_ns: float
    """Reading the base weights once."""
    decode_row_ns: float
    prefill_row_ns: float
    kv_token_ns: float
    lora_row_ns: float
    lora_rank_row_ns: float
    lora_step_ns: float
    """Launches that a step with LoRA rows adds."""
    adapter_byte_ns: float
    hides_reads: bool
    """Whether reading KV and adapters overlaps with computing."""

    def step_ns(self, load: StepLoad) -> int:
        compute = load.num_decode_rows * self.decode_row_ns + load.num_prefill_rows * self.prefill_row_ns
        compute += load.num_lora_rows * self.lora_row_ns + load.num_rank_rows * self.lora_rank_row_ns
        reads = load.num_kv_tokens * self.kv_token_ns + load.num_adapter_bytes * self.adapter_byte_ns
        launches = self.lora_step_ns if load.num_lora_rows else 0.0
        in_sequence = 0.0 if self.hides_reads else reads
        beside = reads - in_sequence
        return round(self.overhead_ns + launches + in_sequence + max(self.weights_ns + beside, compute))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadCost:
    """How adapters come to the device, off the step loop."""

    fixed_ns: float
    byte_ns: float
    num_channels: int
    """Loads that run at a time; the others queue up in order."""

    def load_ns(self, num_bytes: int) -> int:
        return round(self.fixed_ns + num_bytes * self.byte_ns)
