"""RE2 with our exclusions reads patterns as Python's re does, and PEFT's selection rules are reproduced exactly."""

import re
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from tests.adapters.adapter_folder import BASE

from loraplex_adapters.limits import Limits
from loraplex_adapters.name_suffix import compile_suffixes
from loraplex_adapters.peft_targets import module_paths
from loraplex_adapters.target_pattern import TargetPattern
from loraplex_contract.errors import LoraplexError

PATHS = list(module_paths(BASE))
_PIECES = st.sampled_from(
    ["q", "_proj", "q_proj", ".", r"\.", ".*", ".*?", r"\d", r"\w+", "[0-9]", "[^.]+", "[a-m]", "layers", "model", "0",
     "1", "(", ")", "(?:", "|", "$", "^", "+", "?", "{1,3}", "{2}", r"\b", "self_attn", "mlp", "(?i)", "{,2}", r"\Z",
     r"\A", "]"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(_PIECES, min_size=1, max_size=7), template=st.sampled_from(["{}", r"(.*\.)?({})$"]))
def test_an_accepted_pattern_matches_as_python_does(pieces, template):
    pattern = "".join(pieces)
    try:
        compiled = TargetPattern(pattern, field="rank_pattern", max_program=10_000, template=template)
    except LoraplexError:
        assume(False)
    reference = re.compile(template.replace("{}", pattern))
    for path in PATHS:
        assert compiled.matches_all_of(path) == (reference.fullmatch(path) is not None)
        assert compiled.matches_start_of(path) == (reference.match(path) is not None)


@settings(max_examples=100, deadline=None)
@given(
    patterns=st.lists(
        st.sampled_from(
            [
                "q_proj",
                ".*",
                "^model.*",
                r"0\..*",
                "proj",
                "lm_head",
                "self_attn.(q|k)_proj",
                r"1\.self_attn\.k_proj",
                "attn.q_proj",
                "^lm_head",
                "q.proj",
            ]
        )
    )
)
def test_the_first_matching_pattern_is_pefts_pattern_key(patterns):
    compiled = compile_suffixes(patterns, field="rank_pattern", limits=Limits())
    for path in PATHS:
        ours = next((pattern.text for pattern in compiled if pattern.matches(path)), path)
        assert ours == get_pattern_key(patterns, path)


_NAME_PIECES = st.sampled_from(["q_proj", "proj", "self_attn", "model", "layers", "0", "1", "q", ".", r"\.", "_", "^"])


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(_NAME_PIECES, min_size=1, max_size=6))
def test_a_plain_name_matches_as_the_regular_expression_that_peft_makes_of_it(pieces):
    pattern = "".join(pieces)
    [compiled] = compile_suffixes([pattern], field="rank_pattern", limits=Limits())
    reference = re.compile(rf"(.*\.)?({pattern})$")
    for path in PATHS:
        assert compiled.matches(path) == (reference.match(path) is not None)


def test_a_catastrophic_pattern_is_matched_in_linear_time():
    pattern = TargetPattern(r"(a*)*b|(\w+\.?)+!", field="target_modules", max_program=1000)
    assert not pattern.matches_all_of("a" * 5000)


def test_layers_pattern_takes_the_first_index_as_peft_does():
    template = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
    config = SimpleNamespace(target_modules={"q_proj"}, layers_to_transform=[1], layers_pattern=["layers"])
    pattern = TargetPattern("layers", field="layers_pattern", max_program=1000, template=template, has_groups=True)
    for path in PATHS:
        ours = path.endswith(".q_proj") and pattern.group_at_start_of(path, "idx") == "1"
        assert ours == bool(check_target_module_exists(config, path))


@pytest.mark.parametrize("pattern", ["[[a]", "[a--b]", "[a&&b]", "[a~~b]", "[a||b]"])
def test_a_set_that_future_pythons_may_read_differently_is_refused_without_a_warning(pattern):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LoraplexError):
            TargetPattern(pattern, field="target_modules", max_program=1000)
