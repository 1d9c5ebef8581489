"""What a worker tells its scheduler about itself before anything else."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Sizes that do not change while the process lives."""

    worker_id: str
    model_fingerprint: str
    device: str
    num_pages: int
    page_size: int
    """Tokens of KV that one page holds."""
    page_bytes: int
    max_sequences: int
    max_step_tokens: int
    max_context_tokens: int
    vocab_size: int
    adapter_parameter_bytes: int
    """Bytes of one adapter parameter in the compute dtype."""
