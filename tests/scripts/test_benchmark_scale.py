import pandas as pd

import benchmark_scale


def test_a_small_cohort_is_measured_both_ways(tmp_path):
    for memory_gb, held in ((0, "files"), (1, "memory")):
        benchmark_scale.main(
            f"--scans 40 --tiles 8 --dim 6 --draws 2 --steps 1 --memory-gb {memory_gb} --cold "
            f"--folder {tmp_path}/features --output {tmp_path}/scale.tsv".split()
        )
        row = pd.read_csv(tmp_path / "scale.tsv", sep="\t").iloc[0]
        assert (row["scans"], row["held"]) == (40, held)
        assert row[["open_s", "draw_ms", "step_ms", "own_mb", "peak_mb"]].gt(0).all()
