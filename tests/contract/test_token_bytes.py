import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_contract import token_bytes

ids = st.lists(st.integers(0, 2**32 - 1), max_size=50)


@given(ids)
def test_ids_survive_the_wire(token_ids):
    assert list(token_bytes.unpack(token_bytes.pack(token_ids))) == token_ids


def test_bytes_are_little_endian():
    assert token_bytes.pack([1, 0x01020304]) == b"\x01\0\0\0\x04\x03\x02\x01"


def test_a_torn_id_is_refused():
    with pytest.raises(ValueError, match="multiple"):
        token_bytes.unpack(b"\x01\0\0")


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_an_id_out_of_range_is_refused(token_id):
    with pytest.raises(OverflowError):
        token_bytes.pack([token_id])
