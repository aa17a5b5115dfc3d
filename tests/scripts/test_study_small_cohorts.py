import numpy as np
import pandas as pd

import study_small_cohorts


def test_simulated_tiles_vary_along_few_directions_and_extra_specimens_only_test():
    table, bags = study_small_cohorts.simulate(20, 0)
    extra = table["specimen"].str[1:].astype(int) >= 20
    assert table.loc[extra, "specimen"].nunique() == study_small_cohorts.TESTED
    assert set(table.loc[extra, "role"]) == {"test"}
    assert set(table.loc[~extra, "role"]) == {"train", "tune", "test"}
    shares = {}
    for spectrum in (0, study_small_cohorts.SPECTRUM):
        _, bags = study_small_cohorts.simulate(20, 0, spectrum)
        one = [bags.rows(i) for i, scan in enumerate(bags.scans) if scan.endswith("A")]
        values = np.linalg.eigvalsh(np.cov(bags.features[np.concatenate(one)].T))[::-1]
        shares[spectrum] = values[:10].sum() / values.sum()
    assert shares[0] < 0.3
    assert 0.35 < shares[study_small_cohorts.SPECTRUM] < 0.7  # of the first ten of 128: 0.46 without scanner and kind


def test_a_row_for_every_model(tmp_path):
    study_small_cohorts.main(
        f"--specimens 20 --steps 25 --weights 0 1 --warmup 0 0.3 --seeds 1 --width 8 --output {tmp_path}/s.tsv".split()
    )
    table = pd.read_csv(tmp_path / "s.tsv", sep="\t")
    assert table.groupby(["weight", "warmup"]).size().to_dict() == {(0, 0): 3, (1, 0): 3, (1, 0.3): 3}
    assert table["auc"].between(0, 1).all()
    assert (table["inconsistency"] > 0).all()
