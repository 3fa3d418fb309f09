"""The faults benchmark, small: real kills of real processes, and a damaged checkpoint."""

import faults


def test_killed_and_damaged_searches_end_as_if_nothing_had_happened():
    result = faults.main(faults.Options(kills=(1, 1), damages=1, seed=3))
    ends = [(what, outcome, times) for what, outcome, times in result["outcomes"] if outcome != "struck"]
    assert {outcome for _, outcome, _ in ends} == {"as if nothing had happened"}
    struck = [what for what, outcome, _ in result["outcomes"] if outcome == "struck"]
    assert len(struck) == 2
    assert sum("of one of 2 processes" in what for what in struck) == 1
    assert sum(times for what, _, times in ends if "checkpoint" in what) == 1
