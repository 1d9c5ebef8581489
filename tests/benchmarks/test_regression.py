"""The gate of ``make bench``."""

import json

from benchmarks.regression import Timing, falls, last_result


def timings(**runs_s):
    cells = {"engine0": ("engine", 0), "engine8": ("engine", 8), "service8": ("service", 8)}
    return [Timing(where=cells[name][0], num_adapters=cells[name][1], runs_s=runs) for name, runs in runs_s.items()]


BEFORE = timings(engine0=(3.0, 3.2), engine8=(4.0, 4.2), service8=(4.4, 4.6))


def test_a_machine_that_is_half_as_fast_is_no_regression():
    now = timings(engine0=(6.0, 6.4), engine8=(8.0, 8.4), service8=(8.8, 9.2))
    assert falls(BEFORE, now) == []


def test_a_cell_that_became_slower_than_the_rest_is_named():
    now = timings(engine0=(3.0, 3.2), engine8=(4.0, 4.2), service8=(5.6, 5.7))
    (fall,) = falls(BEFORE, now)
    assert fall.cell == ("service", 8)
    assert str(fall) == "service with 8 adapters: 0.54 of the engine without LoRA, was 0.69"


def test_one_run_that_a_neighbour_slowed_is_forgiven():
    now = timings(engine0=(3.0, 3.2), engine8=(4.0, 9.0), service8=(4.4, 4.6))
    assert falls(BEFORE, now) == []


def test_a_cell_that_was_not_measured_before_is_not_compared():
    assert falls(timings(engine0=(3.0,)), BEFORE) == []


def test_the_last_result_is_the_newest_file_but_this_runs_own(tmp_path):
    for day, seconds in (("2026-01-01", 1.0), ("2026-01-03", 3.0), ("2026-01-02", 2.0)):
        row = {"where": "engine", "num_adapters": 0, "runs_s": [seconds]}
        (tmp_path / f"{day}-cpu.json").write_text(json.dumps({"timings": [row]}))
    assert last_result(tmp_path, but=tmp_path / "2026-01-03-cpu.json") == timings(engine0=(2.0,))
    assert last_result(tmp_path, but=tmp_path / "other")[0].runs_s == (3.0,)
    assert last_result(tmp_path / "empty", but=tmp_path) == []
