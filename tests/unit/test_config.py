from pathlib import Path

import pytest
import yaml

from isoslide import config, registry

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
REGISTRY = registry.load(ROOT / "resources/encoders.yaml")
COX = {"type": "survival", "time": "x", "event": "y", "loss": "cox"}
PAIRED = {"arms": {"paired": {"sampler": "paired"}}}
KL = {"arms": {"paired": {"sampler": "paired", "score_weight": 1, "score_loss": "kl"}}}


def complete(**changes):
    value = config.complete({"sheet": "s.tsv", "encoders": ["efficientnet_lite0"]} | changes, SCHEMA)
    config.check(value, REGISTRY)
    return value


def test_defaults_are_filled_at_every_depth():
    value = complete(splits={"folds": 3}, arms={"paired": {"sampler": "paired"}})
    assert value["device"] == "cpu"
    assert value["splits"] == {"by": "patient", "folds": 3, "repeats": 1, "tune": 0.2, "seed": 1}
    assert value["arms"]["paired"]["score_weight"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "uni"}, r"config encoder: unknown key \(value 'uni'\): use one of"),
        ({"splits": {"fold": 3}}, r"config splits.fold: unknown key \(value 3\)"),
        ({"splits": {"folds": 1}}, r"config splits.folds: 1 is less than the minimum of 2"),
        ({"device": "gpu"}, r"config device: 'gpu' is not one of \['cpu', 'cuda'\]"),
        ({"encoders": ["unii"]}, r"config encoders: no encoder 'unii'"),
        ({"import": {"m": {"path": "{scan}.h5", "unit": "px"}}}, r"config import.m.unit: 'px' is not one of"),
        ({"import": {"m": {}}}, r"config import.m: 'path' is a required property"),
        ({"tasks": {"t": {"type": "binary", "label": "x"}}}, r"config tasks.t: 'positive' is a required property"),
        ({"tasks": {"t": {"type": "survival", "time": "x", "evnt": "y"}}}, r"config tasks.t.* 'evnt'|tasks.t.evnt"),
        ({"splits": {"file": "gone.tsv"}}, r"config splits.file: no file 'gone.tsv'"),
        ({"splits": {"file": str(SCHEMA), "repeats": 2}}, r"config splits.file: the file says all folds"),
        (
            {"arms": {"a": {"sampler": "single", "scanner": "A"}}, "splits": {"by": "scanner"}},
            r"config arms.a: a 'single' arm has no training scans in the fold that leaves its scanner out",
        ),
        (
            {"arms": {"paired": {"sampler": "paired", "balance": True}}, "tasks": {"t": COX}},
            r"config arms.paired.balance: task 't' \(cox\) has no classes",
        ),
        ({"arms": {"a": {"sampler": "single"}}}, r"config arms.a: 'scanner' goes with sampler 'single'"),
        ({"arms": {"a": {"sampler": "mixed", "score_weight": 1}}}, r"config arms.a: a robustness loss needs pairs"),
        ({"tasks": {"t": {"type": "binary", "label": "x", "positive": "y"}}}, r"config control: no arm 'paired'"),
        ({"training": {"optimiser": "adamw_cosine"}}, r"config training.learning_rate: 0.01 is for sgd_onecycle"),
        ({"training": {"aggregator": "transmil", "width": 20}}, r"config training.width: 20 is no multiple of 8"),
        (
            {
                "tasks": {"t": {"type": "regression", "label": "x"}},
                "arms": {"paired": {"sampler": "paired"}},
                "training": {"aggregator": "clam_sb"},
            },
            r"config training.aggregator: clam_sb needs classes, and task 't' has none",
        ),
        (
            {"tasks": {"t": {"type": "ordinal", "label": "x"}}},
            r"config tasks.t.type: 'ordinal' is not one of .'binary', 'm",
        ),
        (
            {"tasks": {"t": {"type": "multiclass", "label": "x", "classes": ["a", "b"]}}},
            r"tasks.t.classes: .* is too short",
        ),
        ({"tasks": {"t": COX | {"loss": "coxx"}}}, r"tasks.t.loss: 'coxx' is not one of .'classes', 'cox', 'hazard'"),
        (
            PAIRED | {"tasks": {"t": COX | {"loss": "classes"}}},
            r"tasks.t: loss 'classes' makes good and poor .* give both",
        ),
        (PAIRED | {"tasks": {"t": COX | {"good_after": 9}}}, r"tasks.t.good_after: goes with the loss 'classes' only"),
        (KL | {"tasks": {"t": COX}}, r"config arms.paired.score_loss: 'kl' .*'t' \(cox\) has none: set it to 'mse'"),
        (KL | {"tasks": {"t": {"type": "regression", "label": "x"}}}, r"'t' \(regression\) has none"),
        (KL | {"tasks": {"t": COX | {"loss": "hazard"}}}, r"'t' \(hazard\) has none"),
    ],
)
def test_refuses_in_one_line_with_key_value_and_remedy(changes, message):
    with pytest.raises(config.ConfigError, match=message) as error:
        complete(**changes)
    assert "\n" not in str(error.value)


def test_all_kinds_of_tasks_are_taken():
    value = complete(
        **PAIRED,
        tasks={
            "a": {"type": "multiclass", "label": "x"},
            "b": {"type": "regression", "label": "x"},
            "c": COX | {"loss": "classes", "poor_before": 24, "good_after": 24},
            "d": COX,
            "e": COX | {"loss": "hazard"},
        },
    )
    assert value["tasks"]["e"]["intervals"] == 4
    complete(arms={"paired": KL["arms"]["paired"]}, tasks={"a": {"type": "multiclass", "label": "x"}})


def test_default_configuration_is_valid():
    value = config.complete(yaml.safe_load((ROOT / "config/config.yaml").read_text()), SCHEMA)
    config.check(value, REGISTRY)


def test_every_key_is_described_and_documented():
    schema = yaml.safe_load(SCHEMA.read_text())
    text = (ROOT / "config/README.md").read_text()

    def walk(part, key):
        for name, item in part.get("properties", {}).items():
            if "const" in item:
                continue
            assert item.get("description"), f"{key}{name} has no description"
            assert f"`{name}`" in text, f"config/README.md does not name {key}{name}"
            walk(item, f"{key}{name}.")
        for branch in [*part.get("oneOf", []), part.get("additionalProperties")]:
            if isinstance(branch, dict):
                walk(branch, key)

    walk(schema, "")


def test_a_grid_is_one_arm_for_each_combination_in_place():
    arms = {
        "paired": {"sampler": "paired"},
        "robust": {
            "sampler": "paired",
            "n_anchors": 64,
            "grid": {"score_weight": [1, 0.5], "score_loss": ["mse", "kl"]},
        },
        "last": {"sampler": "mixed"},
    }
    value = complete(
        arms=arms, control="robust_score_weight1_score_loss_mse", tasks={"a": {"type": "multiclass", "label": "x"}}
    )
    names = [f"robust_score_weight{w}_score_loss_{loss}" for w in ("1", "0p5") for loss in ("mse", "kl")]
    assert list(value["arms"]) == ["paired", *names, "last"]
    assert value["arms"][names[3]] == value["arms"][names[0]] | {"score_weight": 0.5, "score_loss": "kl"}
    assert value["arms"][names[0]]["n_anchors"] == 64
    assert value["arms"][names[0]]["temperature"] == 0.1
    assert not any("grid" in arm for arm in value["arms"].values())


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"grid": {"score_weigth": [1]}}, r"config arms.a_score_weigth1.score_weigth: unknown key"),
        ({"grid": {"temperature": [0.1, 0]}}, r"config arms.a_temperature0.temperature: 0 is less than or equal"),
        ({"grid": {"score_weight": []}}, r"config arms.a.grid.score_weight: .* should be non-empty"),
        ({"grid": {"score_weight": 3}}, r"config arms.a.grid.score_weight: 3 is not of type 'array'"),
        ({"score_weight": 1, "grid": {"score_weight": [1]}}, r"config arms.a: 'score_weight' stands in the arm and in"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(arms, message):
    with pytest.raises(config.ConfigError, match=message):
        complete(arms={"a": {"sampler": "paired"} | arms})


def test_two_arms_of_one_name_are_refused():
    arms = {"a": {"sampler": "paired", "grid": {"score_weight": [1]}}, "a_score_weight1": {"sampler": "paired"}}
    with pytest.raises(config.ConfigError, match="there would be two arms 'a_score_weight1'"):
        complete(arms=arms)


def test_arms_with_stain_need_features_of_normalised_tiles():
    arms = {"paired": {"sampler": "paired"}, "m": {"sampler": "mixed", "stain": "macenko"}}
    assert config.stained(complete(arms=arms)) == {"efficientnet_lite0+macenko": "efficientnet_lite0"}
    value = complete(arms=arms) | {"encoders": ["x"], "import": {"x": {}}}
    with pytest.raises(config.ConfigError, match="config arms.m.stain: the features of 'x' are imported"):
        config.stained(value)


def test_before_and_after_are_the_control_and_the_arm_with_most_losses():
    arms = {"score": {"score_weight": 1}, "both": {"score_weight": 1, "embedding_weight": 2}, "plain": {}, "x": {}}
    assert config.before_and_after({"arms": arms, "control": "plain"}) == ["plain", "both"]
    assert config.before_and_after({"arms": {"plain": {}, "x": {}}, "control": "plain"}) == ["plain", "x"]
    assert config.before_and_after({"arms": {"plain": {}}, "control": "plain"}) == ["plain"]
