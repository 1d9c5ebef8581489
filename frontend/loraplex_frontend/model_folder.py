"""What a frontend reads of the model's Hugging Face folder: no weights, only names, bounds and the tokenizer."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Final, Self

SPECIAL_TOKEN_NAMES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


class ModelFolderError(ValueError):
    """The folder lacks something that serving needs; the message says what."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """The served base model, as a frontend sees it."""

    name: str
    architecture: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    max_context_tokens: int
    """By the model's config; connected workers may allow fewer."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    special_tokens: dict[str, str]
    """Variables that a chat template sees, by their Hugging Face names: ``bos_token`` and so on."""
    chat_template: str | None
    tokenizer_json: str
    fingerprint: str
    """SHA-256 of config.json, 64 hex digits: frontends and workers of one scheduler must agree on it."""

    @classmethod
    def read(cls, folder: Path, *, name: str = "") -> Self:
        """Reads config.json, generation_config.json, tokenizer_config.json, chat_template.jinja and tokenizer.json.

        Raises:
            ModelFolderError: a needed file or field is missing or malformed.
        """
        config = _read_json(folder / "config.json", needed=True)
        tokenizer_config = _read_json(folder / "tokenizer_config.json", needed=False)
        generation_config = _read_json(folder / "generation_config.json", needed=False)
        return cls(
            name=name or folder.resolve().name,
            architecture=str((config.get("architectures") or ["unknown"])[0]),
            vocab_size=_positive(config, "vocab_size"),
            num_layers=_positive(config, "num_hidden_layers"),
            hidden_size=_positive(config, "hidden_size"),
            max_context_tokens=_positive(config, "max_position_embeddings"),
            eos_token_ids=_ids(generation_config.get("eos_token_id", config.get("eos_token_id"))),
            bos_token_id=next(iter(_ids(config.get("bos_token_id"))), None),
            special_tokens=_special_tokens(tokenizer_config),
            chat_template=_chat_template(folder, tokenizer_config),
            tokenizer_json=_read_text(folder / "tokenizer.json"),
            fingerprint=hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"cannot read {path.name} of the model folder: {error}") from None


def _read_json(path: Path, *, needed: bool) -> dict[str, Any]:
    if not needed and not path.exists():
        return {}
    try:
        document = json.loads(_read_text(path))
    except ValueError as error:
        raise ModelFolderError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ModelFolderError(f"{path.name} must be a JSON object")
    return document


def _positive(config: dict[str, Any], field: str) -> int:
    value = config.get(field)
    if type(value) is not int or value <= 0:
        raise ModelFolderError(f"config.json: {field} must be a positive integer, got {value!r:.80}")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    """One id or a list of ids, as both forms occur."""
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if any(type(item) is not int or item < 0 for item in ids):
        raise ModelFolderError(f"a token id must be a non-negative integer, got {value!r:.80}")
    return tuple(ids)


def _special_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in SPECIAL_TOKEN_NAMES:
        value = tokenizer_config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """chat_template.jinja wins, as in transformers; of a list of named templates the one called default."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return _read_text(path)
    value = tokenizer_config.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
