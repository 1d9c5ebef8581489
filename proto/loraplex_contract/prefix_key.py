"""Names of KV pages by what they hold. Scheduler and worker compute them alike and on their own.

    root  = SHA-256("loraplex prefix 1", namespace, number of adapters, (digest, weight) of each in the order of use)
    key_i = SHA-256(key_(i-1) or root, token ids of page i as little-endian 32-bit numbers)

Every part has a fixed length or its length before it, so that no two inputs run together. A key stands for everything
that the K and V of its page depend on: who may read it, the exact adapters and weights, and all tokens up to its end.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence

from loraplex_contract import token_bytes

KEY_BYTES = 32
_DOMAIN = b"loraplex prefix 1"


def root_key(namespace: bytes, adapters: Iterable[tuple[str, float]]) -> bytes:
    """The parent of a sequence's first page.

    Args:
        namespace: who shares; not empty, since an empty one means that nothing is to be shared.
        adapters: (digest, weight) as used; none for the base model. A scheduler gives ``weight_on_wire(weight)``.
    """
    assert namespace, "an empty namespace shares nothing and has no keys"
    pairs = [(digest.encode(), weight) for digest, weight in adapters]
    hashed = hashlib.sha256(_DOMAIN)
    hashed.update(struct.pack("<II", len(namespace), len(pairs)))
    hashed.update(namespace)
    for digest, weight in pairs:
        hashed.update(struct.pack("<Id", len(digest), weight) + digest)
    return hashed.digest()


def page_key(parent: bytes, token_ids: Iterable[int]) -> bytes:
    """The key of a page that holds ``token_ids`` and follows the page, or the root, of ``parent``."""
    assert len(parent) == KEY_BYTES, len(parent)
    return hashlib.sha256(parent + token_bytes.pack(token_ids)).digest()


def page_keys(root: bytes, token_ids: Sequence[int], page_size: int) -> Iterator[bytes]:
    """Keys of the complete pages, first page first. Lazy: who stops at a page has not paid for those behind it."""
    parent = root
    for end in range(page_size, len(token_ids) + 1, page_size):
        parent = page_key(parent, token_ids[end - page_size : end])
        yield parent


def weight_on_wire(weight: float) -> float:
    """What a worker gets of a weight: the wire has 32-bit floats.

    Raises:
        OverflowError: more than a 32-bit float can hold.
    """
    rounded: float = struct.unpack("<f", struct.pack("<f", weight))[0]
    return rounded
