"""The measures of fairness, on services that can be judged by eye."""

import numpy as np
import pytest

from loraplex_scheduler.simulation.fairness import (
    fair_shares,
    jain_index,
    jain_of_shares,
    max_service_gap,
    service_gap_bound,
)


def test_the_gap_counts_only_while_both_are_backlogged():
    services = np.array([[0, 0], [10, 0], [20, 5], [90, 5], [90, 50]], dtype=float)
    both = np.ones((5, 2), dtype=bool)
    assert max_service_gap(services, both) == 85
    both[3] = [True, False]
    assert max_service_gap(services, both) == 15


def test_the_gap_within_a_backlog_does_not_count_what_was_before_it():
    services = np.array([[0, 0], [1000, 0], [1010, 4], [1020, 8]], dtype=float)
    is_backlogged = np.array([[True, False], [True, True], [True, True], [True, True]])
    assert max_service_gap(services, is_backlogged) == 12


def test_the_bound_is_that_of_the_paper():
    assert service_gap_bound(max_prompt_tokens=256, max_batch_tokens=1000) == 4000
    assert service_gap_bound(max_prompt_tokens=4096, max_batch_tokens=1000) == 8192


def test_fair_shares_leave_nobody_more_than_was_asked_for():
    assert fair_shares(np.array([10.0, 100.0, 100.0]), 110.0).tolist() == [10.0, 50.0, 50.0]
    assert fair_shares(np.array([10.0, 20.0]), 110.0).tolist() == [10.0, 20.0]


def test_jains_index_is_one_for_equal_and_one_over_n_for_all_to_one():
    assert jain_index(np.array([3.0, 3.0, 3.0])) == pytest.approx(1.0)
    assert jain_index(np.array([9.0, 0.0, 0.0])) == pytest.approx(1 / 3)


def test_who_asked_for_little_and_got_it_was_served_fairly():
    demands = np.array([10.0, 500.0, 500.0])
    assert jain_of_shares(np.array([10.0, 45.0, 45.0]), demands) == pytest.approx(1.0)
    assert jain_of_shares(np.array([0.0, 50.0, 50.0]), demands) == pytest.approx(2 / 3)
