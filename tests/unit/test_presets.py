from pathlib import Path

import pandas as pd
import pytest

from isoslide import config, presets

SCHEMA = Path(__file__).resolve().parents[2] / "workflow/schemas/config.schema.yaml"
ARMS = {
    "paired": {"sampler": "paired"},
    "robust": {"sampler": "paired", "embedding_weight": "preset", "score_weight": "preset"},
    "half": {"sampler": "paired", "embedding_weight": 2, "score_weight": "preset"},
}


def filled(n, **training):
    given = {"sheet": "s.tsv", "encoders": ["uni"], "arms": ARMS, "training": training}
    return presets.fill(config.complete(given, SCHEMA), given, n)


def test_the_reference_is_that_of_the_method():
    """Every number of the method, by hand."""
    training = filled(30, preset="reference")["training"]
    expected = {
        **{"steps": 20000, "specimens": 16, "tiles": 512, "checkpoint_every": 500, "learning_rate": 0.01},
        **{"weight_decay": 0.02, "clip": 20, "dropout": 0.2, "width": 256, "layers": 3, "attention": 128},
        **{"optimiser": "sgd_onecycle", "head_dropout": "independent", "selection": "reference"},
        **{"aggregator": "abmil", "precision": "float32", "patience": 0},
    }
    assert {name: training[name] for name in expected} == expected
    robust = filled(30, preset="reference")["arms"]["robust"]
    wanted = {
        **{"embedding_weight": 10, "score_weight": 10, "n_negatives": 5, "n_anchors": 128, "temperature": 0.1},
        **{"embedding_loss": "info_nce", "score_loss": "mse", "negatives": "other_specimens", "warmup_steps": 0},
    }
    assert {name: robust[name] for name in wanted} == wanted


@pytest.mark.parametrize("row", range(len(presets.COHORT)))
def test_a_cohort_gets_its_row_of_the_table(row):
    least, steps, specimens, weight = presets.COHORT[row]
    for n in (least, least + 1):
        value = filled(n)
        assert (value["training"]["steps"], value["training"]["specimens"]) == (steps, specimens)
        assert value["training"]["checkpoint_every"] == min(500, steps // 20)
        assert value["arms"]["robust"]["embedding_weight"] == value["arms"]["robust"]["score_weight"] == weight
        assert value["arms"]["half"] == {**value["arms"]["robust"], "embedding_weight": 2}
        assert value["arms"]["paired"]["score_weight"] == 0
        assert (value["training"]["head_dropout"], value["training"]["selection"]) == ("paired", "normalised")
    if row:
        assert filled(least - 1)["training"]["steps"] == presets.COHORT[row - 1][1]


def test_what_is_given_wins():
    training = filled(30, steps=70, head_dropout="independent")["training"]
    assert (training["steps"], training["checkpoint_every"], training["head_dropout"]) == (70, 10, "independent")
    assert filled(30, preset="reference", steps=70)["training"]["checkpoint_every"] == 500
    assert filled(30, preset="reference", selection="last")["training"]["selection"] == "last"
    assert filled(5000, checkpoint_every=77)["training"]["checkpoint_every"] == 77


def test_specimens_in_pairs_are_counted_on_scanners_that_may_train():
    rows = [
        *(("a", "A", "", ""), ("a", "B", "train", "")),  # counts
        *(("b", "A", "", ""), ("b", "B", "test", "")),  # B never trains
        *(("c", "A", "", ""), ("c", "B", "", "pen")),  # excluded
        *(("d", "A", "", ""), ("d", "A", "", "")),  # one scanner
        *(("e", "A", "tune", ""), ("e", "B", "tune", "")),  # tunes
        *(("f", "B", "", ""), ("f", "C", "", ""), ("f", "A", "", "")),  # counts
    ]
    table = pd.DataFrame(rows, columns=["specimen", "scanner", "split", "exclude"])
    assert presets.paired_specimens(table) == 2


def test_the_line_for_the_log_says_what_is_used():
    line = presets.sentence(filled(40, steps=70), 40)
    assert line.startswith("training: preset cohort, 40 specimens may train in pairs: steps 70, specimens 8, tiles 512")
    weight = presets.COHORT[0][3]
    assert line.endswith(f"the score loss: robust {weight} and {weight}, half 2 and {weight}")


def test_another_word_for_a_weight_is_refused():
    arms = {"robust": {"sampler": "paired", "score_weight": "high"}}
    with pytest.raises(config.ConfigError, match="config arms.robust.score_weight: 'high' does not match"):
        config.complete({"sheet": "s.tsv", "encoders": ["uni"], "arms": arms}, SCHEMA)
