"""What a server is, what it serves, and its bounds."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of a deployment; a request beyond one is refused with the bound in the error."""

    max_context_tokens: int
    max_prompt_bytes: int
    max_sequences_per_request: int
    max_top_logprobs: int
    max_stop_strings: int
    max_stop_string_bytes: int
    max_requests_per_session: int
    max_composition: int
    max_adapter_rank: int
    max_adapter_bytes: int
    max_message_bytes: int
    max_timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """One frontend process."""

    server_version: str
    instance_id: str
    api_versions: tuple[str, ...]
    limits: Limits
    num_ready_workers: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The base model that is served."""

    name: str
    architecture: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    max_context_tokens: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    has_chat_template: bool
    lora_target_modules: tuple[str, ...]
