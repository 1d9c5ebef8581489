import hashlib
import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from loraplex_contract.prefix_key import KEY_BYTES, page_key, page_keys, root_key, weight_on_wire

A, B = "a" * 64, "b" * 64
names = st.tuples(
    st.binary(min_size=1, max_size=3),
    st.lists(st.tuples(st.text("ab", max_size=3), st.sampled_from([0.0, 0.5, 1.0])), max_size=3).map(tuple),
    st.lists(st.integers(0, 2), max_size=7).map(tuple),
)


def test_keys_are_the_hashes_that_the_docstring_states():
    root = hashlib.sha256(
        b"loraplex prefix 1" + struct.pack("<II", 3, 1) + b"red" + struct.pack("<Id", 64, 0.5) + A.encode()
    ).digest()
    assert root_key(b"red", [(A, 0.5)]) == root
    first = hashlib.sha256(root + struct.pack("<4I", 7, 8, 9, 2**32 - 1)).digest()
    assert page_key(root, (7, 8, 9, 2**32 - 1)) == first
    second = hashlib.sha256(first + struct.pack("<4I", 1, 2, 3, 4)).digest()
    assert list(page_keys(root, [7, 8, 9, 2**32 - 1, 1, 2, 3, 4, 5], 4)) == [first, second]
    assert len(root) == len(first) == KEY_BYTES


@given(names, names)
@settings(deadline=None)
def test_equal_keys_mean_equal_namespaces_adapters_weights_and_tokens(one, other):
    chains = [list(page_keys(root_key(namespace, pairs), tokens, 2)) for namespace, pairs, tokens in (one, other)]
    for number, (key, same) in enumerate(zip(*chains, strict=False)):
        end = 2 * number + 2
        assert (key == same) == ((one[:2], one[2][:end]) == (other[:2], other[2][:end]))


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [(B, 1.0)],
        [(A, 0.5)],
        [(A, 1.0 + 2**-52)],
        [(A, 1.0), (A, 1.0)],
        [(A, 1.0), (B, 1.0)],
        [(B, 1.0), (A, 1.0)],
        [(A, 1.0), (B, 0.5)],
    ],
)
def test_every_adapter_weight_and_the_order_matter(pairs: list[tuple[str, float]]):
    assert root_key(b"red", pairs) != root_key(b"red", [(A, 1.0)])
    assert root_key(b"red", pairs) != root_key(b"blue", pairs)


def test_an_empty_namespace_has_no_keys():
    with pytest.raises(AssertionError, match="empty namespace"):
        root_key(b"", [])


def test_a_weight_is_rounded_as_the_wire_rounds_it():
    from loraplex.worker.v1 import worker_link_pb2

    for weight in (0.1, 1 / 3, 1.0, -2.5e-8):
        assert weight_on_wire(weight) == worker_link_pb2.AdapterWeight(weight=weight).weight
