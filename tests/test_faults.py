"""The faults benchmark, small: a real kill of a real process, and a damaged checkpoint."""

import faults


def test_killed_and_damaged_searches_end_as_if_nothing_had_happened():
    result = faults.main(faults.Options(kills=(1, 0), damages=1, seed=3))
    ends = [(what, outcome, times) for what, outcome, times in result["outcomes"] if outcome != "killed"]
    assert {outcome for _, outcome, _ in ends} == {"as if nothing had happened"}
    killed = [what for what, outcome, _ in result["outcomes"] if outcome == "killed"]
    assert len(killed) == 1
    assert sum(times for what, _, times in ends if "checkpoint" in what) == 1
