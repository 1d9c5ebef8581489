"""Incremental decoding equals decoding at once, for every decoder that is supported."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from loraplex_frontend.text.decode_table import DecoderUnsupported, DecodeTable
from tests.frontend.tiny_model import build_tokenizer

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", "▁Hello", "▁wor", "ld", "!", "▁▁", "é", "漢", " ", "a▁b"]


def sentencepiece(decoder) -> Tokenizer:
    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *BYTE_TOKENS, *PIECES])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer


def llama2() -> Tokenizer:
    return sentencepiece(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    )


TOKENIZERS = {
    "byte_level": build_tokenizer(),
    "llama2": llama2(),
    "llama2_without_strip": sentencepiece(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ),
    "metaspace": sentencepiece(decoders.Metaspace(prepend_scheme="always")),
    "metaspace_never": sentencepiece(decoders.Metaspace(prepend_scheme="never")),
}
SIZES = {name: tokenizer.get_vocab_size() for name, tokenizer in TOKENIZERS.items()}
TABLES = {
    name: DecodeTable.of(tokenizer, tokenizer_json=tokenizer.to_str(), vocab_size=SIZES[name] + 3)
    for name, tokenizer in TOKENIZERS.items()
}


def is_whole(text: str) -> bool:
    return text.encode("utf-8").decode("utf-8") == text


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("skip", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_deltas_together_are_what_decoding_at_once_gives(name, skip, data):
    ids = data.draw(st.lists(st.integers(0, SIZES[name] - 1), max_size=24))
    cuts = data.draw(st.lists(st.integers(1, 4), min_size=24, max_size=24))
    detokenizer = TABLES[name].detokenizer(skip_special_tokens=skip)
    deltas, start = [], 0
    for size in cuts:
        deltas.append(detokenizer.push(ids[start : start + size]))
        start += size
    deltas.append(detokenizer.flush())
    assert "".join(deltas) == TOKENIZERS[name].decode(ids, skip_special_tokens=skip)
    assert all(is_whole(delta) for delta in deltas)


def test_a_character_split_over_tokens_comes_when_its_last_byte_does():
    tokenizer, table = TOKENIZERS["byte_level"], TABLES["byte_level"]
    ids = tokenizer.encode("é漢🦊").ids
    assert len(ids) == 9, "no merges for these: one token a byte"
    detokenizer = table.detokenizer(skip_special_tokens=True)
    assert [detokenizer.push([i]) for i in ids] == ["", "é", "", "", "漢", "", "", "", "🦊"]
    assert detokenizer.flush() == ""


def test_a_character_that_never_completes_becomes_one_replacement_character():
    ids = TOKENIZERS["byte_level"].encode("🦊").ids
    detokenizer = TABLES["byte_level"].detokenizer(skip_special_tokens=True)
    assert detokenizer.push(ids[:3]) == ""
    assert detokenizer.flush() == "\ufffd"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_beyond_the_tokenizer_spell_nothing(name):
    detokenizer = TABLES[name].detokenizer(skip_special_tokens=False)
    assert detokenizer.push([SIZES[name], SIZES[name] + 2, SIZES[name] + 500]) == ""


@pytest.mark.parametrize("decoder", [{"type": "WordPiece"}, None, {"type": "Sequence", "decoders": [{"type": "CTC"}]}])
def test_an_unknown_decoder_is_refused_at_start(decoder):
    tokenizer = TOKENIZERS["byte_level"]
    document = json.loads(tokenizer.to_str()) | {"decoder": decoder}
    with pytest.raises(DecoderUnsupported):
        DecodeTable.of(tokenizer, tokenizer_json=json.dumps(document), vocab_size=10)


def test_a_byte_level_pre_tokenizer_is_not_taken_for_a_decoder():
    tokenizer = TOKENIZERS["byte_level"]
    assert isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    assert TABLES["byte_level"].kind == "byte_level"
