"""The tokenizer inside a GGUF, as the files that Hugging Face reads."""

from collections.abc import Iterator
from typing import Any

import gguf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from loraplex_worker.gguf_source import Fields, malformed, need, unsupported


def build_tokenizer(fields: Fields) -> tokenizers.Tokenizer:
    """A byte-level BPE with the GGUF's token ids. Raises Unsupported for another model or pre-tokenizer."""
    kind, splitter = need(fields, "tokenizer.ggml.model"), need(fields, "tokenizer.ggml.pre")
    if kind != "gpt2":
        raise unsupported(f"tokenizer.ggml.model {kind!r}; known: 'gpt2'")
    if splitter != "smollm":
        raise unsupported(f"tokenizer.ggml.pre {splitter!r}; known: 'smollm'")
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if fields.get(f"tokenizer.ggml.{key}"):
            raise unsupported(f"tokenizer.ggml.{key} = true")
    tokens = need(fields, "tokenizer.ggml.tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise malformed("tokenizer.ggml.tokens holds a token twice")
    merges = [_split_merge(merge, vocabulary) for merge in need(fields, "tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, byte_fallback=False))
    # smollm: every digit alone, then GPT-2's split into words.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(_added_tokens(fields, tokens)))
    return tokenizer


def _split_merge(merge: str, vocabulary: dict[str, int]) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
        raise malformed(f"tokenizer.ggml.merges holds {merge!r}, which does not join two tokens into a third")
    return left, right


def _added_tokens(fields: Fields, tokens: list[str]) -> Iterator[tokenizers.AddedToken]:
    types = need(fields, "tokenizer.ggml.token_type")
    if len(types) != len(tokens):
        raise malformed(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
            yield tokenizers.AddedToken(token, normalized=False, special=token_type == gguf.TokenType.CONTROL)
        elif token_type not in (gguf.TokenType.NORMAL, gguf.TokenType.UNUSED):
            raise unsupported(f"tokenizer.ggml.token_type {token_type} of token {token!r}")


def tokenizer_config(fields: Fields) -> dict[str, Any]:
    """The fields of ``tokenizer_config.json``: special tokens and chat template."""
    tokens = need(fields, "tokenizer.ggml.tokens")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(need(fields, "llama.context_length")),
    }
    for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        token_id = fields.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None and not 0 <= token_id < len(tokens):
            raise malformed(f"tokenizer.ggml.{key}_token_id {token_id} is not below {len(tokens)}")
        settings[f"{name}_token"] = None if token_id is None else tokens[token_id]
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"]
    return settings
