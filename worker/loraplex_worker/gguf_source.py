"""Read a GGUF's keys: every one is known, or refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from loraplex_contract.errors import InvalidArgument, Unsupported

Fields = Mapping[str, Any]

_KNOWN_ARCHITECTURE_KEYS = frozenset(
    "llama." + key
    for key in (
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_count",
        "vocab_size",
    )
)
_KNOWN_TOKENIZER_KEYS = frozenset(
    "tokenizer.ggml." + key
    for key in (
        "model",
        "pre",
        "tokens",
        "token_type",
        "merges",
        "bos_token_id",
        "eos_token_id",
        "unknown_token_id",
        "padding_token_id",
        "add_bos_token",
        "add_eos_token",
        "add_space_prefix",
    )
)


def open_source(gguf_path: Path) -> Any:
    try:
        return gguf.GGUFReader(gguf_path)
    except (ValueError, IndexError, KeyError) as error:
        raise malformed(f"not a readable GGUF: {error}") from error


def check_keys(fields: Fields) -> None:
    architecture = need(fields, "general.architecture")
    if architecture != "llama":
        raise unsupported(f"general.architecture {architecture!r}; known: 'llama'")
    for key in fields:
        if key.startswith("llama.") and key not in _KNOWN_ARCHITECTURE_KEYS:
            raise unsupported(f"model key {key!r}")
        if key.startswith("tokenizer.ggml.") and key not in _KNOWN_TOKENIZER_KEYS:
            raise unsupported(f"tokenizer key {key!r}")


def need(fields: Fields, key: str) -> Any:
    if key not in fields:
        raise malformed(f"the GGUF has no {key!r}")
    return fields[key]


def unsupported(what: str) -> Unsupported:
    return Unsupported(f"model source: unsupported {what}", reason="MODEL_UNSUPPORTED")


def malformed(what: str) -> InvalidArgument:
    return InvalidArgument(f"model source: {what}", reason="MODEL_MALFORMED")
