import itertools

import numpy as np

from loraplex_worker.engine.random_stream import mix, uniform


def test_mix_equals_the_published_splitmix64_sequence():
    # First outputs of splitmix64 seeded with 1234567, as in Vigna's reference program.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    gamma = 0x9E3779B97F4A7C15
    assert [mix(1234567 + step * gamma) for step in range(1, 5)] == expected


def test_the_same_seed_and_position_give_the_same_number_for_ever():
    # Changing these breaks resumed requests and recorded seeds.
    drawn = [uniform(seed, position).hex() for seed, position in ((0, 0), (0, 1), (1, 0), (2**64 - 1, 4095))]
    assert drawn == ["0x1.ff0dc8cf7f284p-2", "0x1.471cf3295fea7p-1", "0x1.1ca33757b8d0ap-2", "0x1.2957c756416f8p-3"]


def test_numbers_fill_the_unit_interval_evenly_for_consecutive_seeds_and_positions():
    for numbers in (
        [uniform(7, position) for position in range(20000)],
        [uniform(seed, 0) for seed in range(20000)],
        [uniform(seed, seed) for seed in range(20000)],
    ):
        counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
        # 49 degrees of freedom: 99.9 % of true uniform samples stay below 85.4.
        assert ((counts - 400) ** 2 / 400).sum() < 85.4


def test_neighbouring_positions_and_seeds_are_not_correlated():
    grid = np.array([[uniform(seed, position) for position in range(200)] for seed in range(200)])
    for left, right in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        # Standard error of a correlation over 39800 pairs is 0.005.
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.02


def test_no_two_of_many_draws_are_equal():
    drawn = {uniform(seed, position) for seed, position in itertools.product(range(100), range(100))}
    assert len(drawn) == 10000
    assert all(0.0 <= number < 1.0 for number in drawn)
