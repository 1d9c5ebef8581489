"""A registration that dies at any of its commit points leaves the name absent or complete, and can be repeated."""

from tests.adapters.commit_points import POINTS, run_kills


async def test_a_kill_at_each_commit_point_leaves_a_name_absent_or_complete(tmp_path):
    """``python -m tests.adapters.commit_points --kills 200`` is the long version, with updates too."""
    outcomes = await run_kills(tmp_path, len(POINTS))
    assert outcomes.total() == len(POINTS)
    assert outcomes["absent"] >= 10, "most points are before the commit"
    assert outcomes["complete"] >= 4, "and some after it"
