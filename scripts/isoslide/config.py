"""The configuration: one-line errors, defaults from the schema, and the checks a schema cannot make. Light."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import yaml

from isoslide import outcomes, sheet
from isoslide.registry import Encoder

WITHOUT_CLASSES = ("regression", "cox", "hazard")  # kinds of tasks


class ConfigError(ValueError):
    """The configuration cannot be used; the message is one line: key, value, remedy."""


def complete(config: Mapping[str, Any], schema_path: str | Path) -> dict[str, Any]:
    """Return the configuration with every `grid` of an arm laid out and the schema's defaults filled in.

    Raises:
        ConfigError: for an unknown key or a value outside its bounds.
    """
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    _validate(config, schema)
    if "encoders" not in config and not config.get("apply"):
        raise ConfigError(
            "config encoders: missing: name encoders of resources/encoders.yaml, or a model folder under 'apply', "
            "whose encoder is then taken"
        )
    if any("grid" in arm for arm in config.get("arms", {}).values()):
        config = {**config, "arms": expand(config["arms"])}
        _validate(config, schema)
    return _with_defaults(config, schema)


def expand(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the arms with every `grid` laid out: one arm for each combination of its values, the last key fastest.

    Their names say the values: `robust_embedding_weight3_temperature0p1` (p for the point, minus as m),
    `robust_score_loss_kl`.

    Raises:
        ConfigError: if two arms would have one name.
    """
    expanded: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        grid = arm.get("grid", {})
        rest = {key: value for key, value in arm.items() if key != "grid"}
        for values in product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            full = "_".join([name, *(_value_name(key, value) for key, value in chosen.items())])
            if full in expanded or (grid and full in arms):
                raise ConfigError(f"config arms.{name}.grid: there would be two arms {full!r}: remove one of them")
            if twice := sorted(set(chosen) & set(rest)):
                raise ConfigError(f"config arms.{name}: {twice[0]!r} stands in the arm and in its grid: remove one")
            expanded[full] = rest | chosen
    return expanded


def _value_name(key: str, value: Any) -> str:
    if isinstance(value, str):
        return f"{key}_{value}"
    return key + f"{value:.12g}".replace(".", "p").replace("-", "m").replace("+", "")


def _validate(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(config)
    for error in sorted(errors, key=lambda error: list(map(str, error.path))):
        raise ConfigError(_one_line(_deepest(error)))


def check(config: Mapping[str, Any], registry: Mapping[str, Encoder]) -> None:
    """Refuse references to encoders and arms that do not exist, and settings that do not go together.

    Raises:
        ConfigError: naming the key and what it may be.
    """
    imported = config["import"]
    for name in config["encoders"]:
        if name not in registry and name not in imported:
            known = sorted([*registry, *imported])
            raise ConfigError(
                f"config encoders: no encoder {name!r}: use one of {known}, or describe it under 'import'"
            )
    for name in imported:
        if name in registry:
            raise ConfigError(f"config import.{name}: the registry has an encoder of that name: choose another")
    if config["tasks"] and config["control"] not in config["arms"]:
        raise ConfigError(f"config control: no arm {config['control']!r}: use one of {sorted(config['arms'])}")
    _check_training(config)
    _check_splits(config)
    for name, arm in config["arms"].items():
        _check_arm(name, arm)
    for name, task in config["tasks"].items():
        _check_task(name, task, config["arms"])


def check_sheet(config: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Refuse a sheet (`sheet.read`) that leaves nothing to do, or that lacks what tasks and arms name.

    Raises:
        ConfigError: naming the key and what it may be.
        SheetError: with the row or the column, the value and the remedy.
    """
    rows = sheet.included(table)
    if rows.empty:
        raise sheet.SheetError(
            f"{config['sheet']}: all {len(table)} scans are excluded: empty the column 'exclude' of those to use"
        )
    outcomes.check_tasks(table, config["tasks"], config["sheet"])
    scanners = sorted(set(rows["scanner"]))
    for name, arm in config["arms"].items():
        if "scanner" in arm and arm["scanner"] not in scanners:
            raise ConfigError(
                f"config arms.{name}.scanner: no scan of {arm['scanner']!r} in the sheet: use one of {scanners}"
            )


def _check_arm(name: str, arm: Mapping[str, Any]) -> None:
    if (arm["sampler"] == "single") != ("scanner" in arm):
        raise ConfigError(f"config arms.{name}: 'scanner' goes with sampler 'single', and only with it")
    if arm["sampler"] != "paired" and (arm["embedding_weight"] or arm["score_weight"]):
        raise ConfigError(f"config arms.{name}: a robustness loss needs pairs of scans: set sampler to 'paired'")
    if arm["sampler"] == "single" and (arm["combat"] or arm["adversarial_weight"]):
        raise ConfigError(
            f"config arms.{name}: 'combat' and 'adversarial_weight' need several scanners: set sampler to 'mixed' "
            "or 'paired'"
        )


def together(config: Mapping[str, Any], encoders: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return {tile view: its encoders} of those that one job encodes; none unless `share_tiles` is set.

    Args:
        config: complete.
        encoders: entries of the registry by name. Those that TRIDENT runs need another environment, so stay alone.
    """
    views: dict[str, list[str]] = {}
    for name, entry in encoders.items():
        if config["share_tiles"] and entry.loader != "trident":
            views.setdefault(entry.tile, []).append(name)
    return {view: names for view, names in views.items() if len(names) > 1}


def before_and_after(config: Mapping[str, Any]) -> list[str]:
    """Return the control arm and the arm that shows best what the losses change: with both, else with one, else any."""
    arms = config["arms"]
    rated = {
        name: sum(bool(arm.get(f"{loss}_weight")) for loss in ("embedding", "score")) for name, arm in arms.items()
    }
    others = sorted((name for name in arms if name != config["control"]), key=lambda name: -rated[name])
    return [name for name in (config["control"], *others[:1]) if name in arms]


def stained(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the encoder of each features variant that arms with `stain` need, by the variant's name.

    Raises:
        ConfigError: if the features of an encoder are imported, so that its tiles cannot be normalised.
    """
    found = {}
    for name, arm in config["arms"].items():
        for encoder in config["encoders"] if "stain" in arm else ():
            if encoder in config["import"]:
                raise ConfigError(
                    f"config arms.{name}.stain: the features of {encoder!r} are imported, their tiles cannot be "
                    "normalised: remove the arm or the encoder"
                )
            found[f"{encoder}+{arm['stain']}"] = encoder
    return found


def _check_splits(config: Mapping[str, Any]) -> None:
    divided = config["splits"]
    if "file" in divided and not Path(divided["file"]).is_file():
        raise ConfigError(f"config splits.file: no file {divided['file']!r}: correct the path, or leave the key out")
    if "file" in divided and (divided["by"] != "patient" or divided["repeats"] > 1):
        raise ConfigError("config splits.file: the file says all folds: leave 'by' and 'repeats' out, or the file")
    for name, arm in config["arms"].items():
        if divided["by"] == "scanner" and arm["sampler"] == "single":
            raise ConfigError(
                f"config arms.{name}: a 'single' arm has no training scans in the fold that leaves its scanner out: "
                "remove the arm, or set splits.by to 'patient'"
            )


def _check_task(name: str, task: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> None:
    kind = outcomes.kind_of(task)
    cuts = [key for key in ("poor_before", "good_after") if key in task]
    if kind == "classes" and len(cuts) < 2:
        raise ConfigError(
            f"config tasks.{name}: loss 'classes' makes good and poor outcomes by poor_before and good_after: "
            "give both, or set loss to 'cox' or 'hazard'"
        )
    if kind != "classes" and cuts:
        raise ConfigError(f"config tasks.{name}.{cuts[0]}: goes with the loss 'classes' only: remove it")
    if kind not in WITHOUT_CLASSES:
        return
    for arm, settings in arms.items():
        if settings["balance"]:
            raise ConfigError(f"config arms.{arm}.balance: task {name!r} ({kind}) has no classes: leave it out")
        if settings["score_weight"] and settings["score_loss"] != "mse":
            raise ConfigError(
                f"config arms.{arm}.score_loss: {settings['score_loss']!r} compares probabilities of classes, of which "
                f"task {name!r} ({kind}) has none: set it to 'mse'"
            )


def _check_training(config: Mapping[str, Any]) -> None:
    training = config["training"]
    if training["aggregator"] == "transmil" and training["width"] % 8:
        raise ConfigError(f"config training.width: {training['width']} is no multiple of 8, the heads of transmil")
    if training["optimiser"] == "adamw_cosine" and training["learning_rate"] > 0.003:
        raise ConfigError(
            f"config training.learning_rate: {training['learning_rate']} is for sgd_onecycle: give adamw_cosine "
            "at most 0.003, such as 0.0003"
        )
    for name, task in config["tasks"].items():
        if training["aggregator"] == "clam_sb" and outcomes.kind_of(task) in WITHOUT_CLASSES:
            raise ConfigError(
                f"config training.aggregator: clam_sb needs classes, and task {name!r} has none: use gated_abmil"
            )


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return `value` with the defaults of absent properties, at every depth."""
    if not isinstance(value, Mapping):
        return value
    properties = schema.get("properties", {})
    for branch in schema.get("oneOf", []):
        if jsonschema.Draft202012Validator(branch).is_valid(value):
            properties = branch["properties"]
    others = schema.get("additionalProperties", {})
    full = {name: part["default"] for name, part in properties.items() if "default" in part} | dict(value)
    return {name: _with_defaults(item, properties.get(name, others) or {}) for name, item in full.items()}


def _deepest(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    """Return the error that tells most: of alternatives, the one whose `type` constant fits."""
    if error.validator != "oneOf":
        return error
    wrong_type = {part.schema_path[0] for part in error.context if part.validator == "const"}
    fitting = [part for part in error.context if part.schema_path[0] not in wrong_type]
    fitting.sort(key=lambda part: part.validator != "additionalProperties")  # a misspelt key before the one it hides
    if fitting:
        return fitting[0]
    constants = [part for part in error.context if part.validator == "const"]
    constants[0].message = f"{constants[0].instance!r} is not one of {[part.validator_value for part in constants]}"
    return constants[0]


def _one_line(error: jsonschema.ValidationError) -> str:
    key = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = sorted(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(known))[0]
        where = f"{key}.{unknown}" if key else unknown
        return f"config {where}: unknown key (value {error.instance[unknown]!r}): use one of {known}, or remove it"
    remedy = error.schema.get("description", "") if isinstance(error.schema, Mapping) else ""
    return f"config {key or '(top level)'}: {error.message}" + (f": {remedy}" if remedy else ": add or correct it")
