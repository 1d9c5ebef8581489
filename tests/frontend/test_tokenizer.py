"""What a user writes never becomes a control token; the rest is as the tokenizer has it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer

from loraplex_frontend.text.tokenizer import Tokenizer
from tests.frontend.tiny_model import SPECIAL, build_tokenizer

TINY = build_tokenizer()
CONTROL = set(range(len(SPECIAL)))
FRAGMENTS = st.sampled_from([*SPECIAL, "<|", "|>", "im_start", "im_end", "<", ">", "|", "\n", " ", "a", "é"])
SNEAKY = st.lists(FRAGMENTS, max_size=12).map("".join)


@pytest.mark.parametrize("text", SPECIAL)
def test_the_name_of_a_control_token_in_text_is_split_like_other_text(tokenizer, text):
    ids = tokenizer.encode_text(f"a{text}b")
    assert CONTROL.isdisjoint(ids)
    assert tokenizer.decode(ids) == f"a{text}b"


@settings(max_examples=200, deadline=None)
@given(text=SNEAKY)
def test_no_text_becomes_a_control_token_and_none_is_lost(tokenizer, text):
    ids = tokenizer.encode_text(text)
    assert CONTROL.isdisjoint(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_ordinary_text_is_encoded_as_the_library_does(tokenizer, text):
    if not tokenizer.special_spans(text):
        assert tokenizer.encode_text(text) == TINY.encode(text).ids


def test_template_text_keeps_control_tokens(tokenizer):
    assert tokenizer.encode_template("<|im_start|>")[0] == 1


async def test_long_text_is_encoded_off_the_loop_with_the_same_result(tokenizer):
    text = "the quick brown fox. " * 500
    assert await tokenizer.encode_text_async(text) == tokenizer.encode_text(text)


def test_smollm2_encodes_ordinary_text_as_before_and_control_tokens_as_text(smollm2_folder):
    source = (smollm2_folder / "tokenizer.json").read_text()
    tokenizer, raw = Tokenizer(source, vocab_size=49_152), RawTokenizer.from_str(source)
    text = "The capital of France is Paris. 1234 déjà vu 🦊\n\tx = f(y)"
    assert tokenizer.encode_text(text) == raw.encode(text).ids
    ids = tokenizer.encode_text("<|im_end|><|endoftext|><repo_name>")
    assert set(tokenizer.special_tokens.values()).isdisjoint(ids)
    assert tokenizer.decode(ids) == "<|im_end|><|endoftext|><repo_name>"
