import hypothesis.strategies as st
from hypothesis import given, settings

from loraplex_contract.prefix_key import page_keys, root_key
from loraplex_scheduler.core.prefix_index import PrefixIndex

PAGE_SIZE = 4


def keys(*token_ids: int, namespace: bytes = b"red") -> list[bytes]:
    return list(page_keys(root_key(namespace, ()), token_ids, PAGE_SIZE))


def index(*worker_ids: str, num_pages: int = 8) -> PrefixIndex:
    result = PrefixIndex()
    for worker_id in worker_ids:
        result.add_worker(worker_id, page_size=PAGE_SIZE, num_pages=num_pages)
    return result


def test_it_expects_the_common_beginning_in_whole_pages_and_only_where_it_was_computed():
    known = index("w", "v")
    known.note_computed("w", keys(*range(14)))
    assert known.expected_tokens("w", keys(*range(14))) == 12
    assert known.expected_tokens("w", keys(*range(9), 99, 98, 97)) == 8
    assert known.expected_tokens("w", keys(99, *range(1, 14))) == 0
    assert known.expected_tokens("v", keys(*range(14))) == 0
    assert known.expected_tokens("w", keys(*range(14), namespace=b"blue")) == 0


def test_a_worker_that_comes_back_or_is_unknown_holds_nothing():
    known = index("w")
    known.note_computed("w", keys(*range(8)))
    known.add_worker("w", page_size=PAGE_SIZE, num_pages=8)
    assert known.expected_tokens("w", keys(*range(8))) == 0
    known.note_computed("w", keys(*range(8)))
    known.forget_worker("w")
    known.forget_worker("w")
    known.note_computed("w", keys(*range(8)))
    assert known.expected_tokens("w", keys(*range(8))) == 0


def test_what_was_not_computed_for_the_longest_is_forgotten_first_and_its_last_pages_before_its_first():
    known = index("w", num_pages=4)
    known.note_computed("w", keys(*range(12)))
    known.note_computed("w", keys(*range(50, 58)))
    assert known.expected_tokens("w", keys(*range(12))) == 8
    known.note_computed("w", keys(*range(12)))
    assert known.expected_tokens("w", keys(*range(12))) == 12
    assert known.expected_tokens("w", keys(*range(50, 58))) == 4


def test_keys_are_hashed_no_further_than_the_first_that_is_missing():
    known = index("w")
    known.note_computed("w", keys(1, 2, 3, 4))
    lazy = page_keys(root_key(b"red", ()), list(range(1, 401)), PAGE_SIZE)
    assert known.expected_tokens("w", lazy) == 4
    assert len(list(lazy)) == 98


@given(st.lists(st.lists(st.integers(0, 1), max_size=24), max_size=20), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_it_never_holds_more_keys_than_the_worker_has_pages_nor_expects_what_was_never_computed(prompts, num_pages):
    known = index("w", num_pages=num_pages)
    ever: set[bytes] = set()
    for prompt in prompts:
        wanted = keys(*prompt)
        assert known.expected_tokens("w", wanted) <= PAGE_SIZE * len([key for key in wanted if key in ever])
        known.note_computed("w", wanted)
        ever.update(wanted)
        assert known.num_keys("w") <= num_pages
        assert known.expected_tokens("w", wanted) == PAGE_SIZE * min(num_pages, len(wanted))
