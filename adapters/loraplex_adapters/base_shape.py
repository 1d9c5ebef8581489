"""The shapes of the base model's modules: what an adapter is checked against. No weights are read here."""

import dataclasses
from pathlib import Path
from typing import Any, Self

from loraplex_adapters.json_document import parse_json_object
from loraplex_adapters.module import Module
from loraplex_contract.errors import FailedPrecondition, InvalidArgument

ARCHITECTURES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""All have unfused q, k, v, o, gate, up and down projections below ``model.layers.<i>``."""
_MAX_CONFIG_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """Dimensions of a decoder-only base model, from its Hugging Face ``config.json``."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    folder: Path | None = dataclasses.field(default=None, compare=False)
    """Where the base's weights lie, for comparing embeddings that PEFT saved along. None: such tensors are refused."""

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read ``config.json`` of a base model folder.

        Raises:
            InvalidArgument: no such file (SOURCE_NOT_FOUND), or a field is missing or no positive integer
                (BASE_MODEL_MALFORMED).
            FailedPrecondition: the architecture is not known here (BASE_MODEL_UNSUPPORTED).
        """
        config = _read_config(folder)
        hidden_size, num_heads = _positive(config, "hidden_size"), _positive(config, "num_attention_heads")
        return cls(
            architecture=_architecture(config),
            num_layers=_positive(config, "num_hidden_layers"),
            hidden_size=hidden_size,
            intermediate_size=_positive(config, "intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=_positive(config, "num_key_value_heads", default=num_heads),
            head_dim=_positive(config, "head_dim", default=hidden_size // num_heads),
            vocab_size=_positive(config, "vocab_size"),
            # Hugging Face leaves the field out only where it has its class's default, which is False for all of these.
            tie_word_embeddings=config.get("tie_word_embeddings", False) is True,
            folder=folder,
        )

    def features(self, module: Module) -> tuple[int, int]:
        """(in_features, out_features) of a module; for embed_tokens (vocab_size, hidden_size)."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        match module:
            case Module.Q_PROJ:
                return self.hidden_size, query
            case Module.K_PROJ | Module.V_PROJ:
                return self.hidden_size, key_value
            case Module.O_PROJ:
                return query, self.hidden_size
            case Module.GATE_PROJ | Module.UP_PROJ:
                return self.hidden_size, self.intermediate_size
            case Module.DOWN_PROJ:
                return self.intermediate_size, self.hidden_size
            case Module.EMBED_TOKENS:
                return self.vocab_size, self.hidden_size
            case Module.LM_HEAD:
                return self.hidden_size, self.vocab_size


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        with (folder / "config.json").open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidArgument("the base model folder has no readable config.json", reason="SOURCE_NOT_FOUND") from error
    if len(data) > _MAX_CONFIG_BYTES:
        raise InvalidArgument(f"config.json is larger than {_MAX_CONFIG_BYTES} bytes", reason="BASE_MODEL_MALFORMED")
    return parse_json_object(data, source="config.json")


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        message = f"the base model's architecture is {str(name)[:80]!r}; supported: {known}"
        raise FailedPrecondition(message, reason="BASE_MODEL_UNSUPPORTED")
    return str(name)


def _positive(config: dict[str, Any], field: str, *, default: int | None = None) -> int:
    value = config.get(field)
    if value is None:
        value = default
    if type(value) is not int or value <= 0:
        message = f"config.json: {field} must be a positive integer, got {value!r:.80}"
        raise InvalidArgument(message, reason="BASE_MODEL_MALFORMED")
    return value
