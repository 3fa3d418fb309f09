"""The speed benchmark at toy sizes: that it measures what it says, not how fast anything is."""

import json

from sparsemix.spaces.nb201 import NB201Genotype
from sparsemix.speed.measurement import Options, measure_speed


def test_every_comparison_is_measured(tmp_path, capsys):
    options = Options(
        cells=(1,),
        candidates=(2,),
        models=("mobilenetv3_small_100",),
        channels=4,
        image_size=8,
        batch_size=8,
        rounds=1,
        schedule_cells=1,
        schedule_epochs=2,
        schedule_images=64,
        json=tmp_path / "speed.json",
    )
    rows = measure_speed(options)
    assert json.loads((tmp_path / "speed.json").read_text()) == rows
    comparisons = {}
    for row in rows:
        comparisons.setdefault(row["comparison"], []).append(row)
    assert len(comparisons) == 13
    assert all(variants[0]["ratio"] == 1 for variants in comparisons.values())
    step = {row["variant"]: row["operations"] for row in comparisons["NAS-Bench-201, N 1: step"]}
    assert step["smooth"] == "30, 30"
    assert step["sparse, 8 of 30 active, two 3x3"] == "8, 8 and 22 scored"
    assert {row["operations"] for row in comparisons["N 1: one operation"]} == {"6, 6"}
    dense, *sparse = comparisons["DARTS space: weights update"]
    assert all(row["peak_memory"] < dense["peak_memory"] for row in sparse)
    for row in comparisons["N 1: 2 epochs of 4 steps"]:
        assert NB201Genotype.parse(row["genotype"])
        assert 0 <= row["accuracy"] <= 1
    assert "| DARTS space: step | smooth | 196, 196 |" in capsys.readouterr().out
