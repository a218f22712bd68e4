"""Configs as plain values, compared; fields of earlier versions under their names of today."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from sidebranch.config.schema import Config
from sidebranch.errors import UserError

# Fields that may differ on resume: they do not change what is trained.
NOT_TRAINED = (
    "about",
    "base",
    "published",
    "differs",
    "name",
    "data.root",
    "data.workers",
    "model.weights",
    "teacher.run",
    "teacher.weights",
    "data.on_corrupt",
    "eval.chunk",
    *(
        f"runtime.{field.name}"
        for field in dataclasses.fields(Config().runtime)
        if field.name not in ("precision", "sync_batchnorm")
    ),
)
RENAMED = {"model.depth": "branches.count", "branches.depth": "branches.keep"}
WHOLE = {"objective", "sampling", "runtime"}  # groups that a run's config has, and a recipe rarely has all of
REMOVED = {"runtime.strategy": "ddp"}  # to the only value that is still possible


def as_dict(config: Config) -> dict[str, Any]:
    """Plain nested values, as in YAML (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def changed_from_defaults(config: Config) -> dict[str, Any]:
    """The nested values that differ from the defaults."""
    found: dict[str, Any] = {}
    values = as_dict(config)
    for key, default in as_dict(Config()).items():
        value = values[key]
        if dataclasses.is_dataclass(getattr(config, key)):
            value = {name: each for name, each in value.items() if each != default[name]}
            default = {}
        if value != default:
            found[key] = value
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The trained fields in which two runs' configs differ, as "optim.lr: 0.1 -> 0.05".

    A field that a config does not have has its default.
    """
    defaults = as_dict(Config())
    before, after = (leaves(defaults) | leaves(up_to_date(each)[0]) for each in (old, new))
    keys = [key for key in {**before, **after} if key not in NOT_TRAINED]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def fingerprint(nested: dict[str, Any]) -> str:
    """A hash of what a config trains, its defaults written out: equal if `differences` finds none."""
    values = leaves(as_dict(Config())) | leaves(up_to_date(nested)[0])
    trained = {key: value for key, value in values.items() if key not in NOT_TRAINED}
    return hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()


def up_to_date(nested: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of an older config under today's names, and a line about each.

    Raises:
        UserError: a removed field has a value that is no longer possible.
    """
    new = {key: dict(value) if isinstance(value, dict) else value for key, value in nested.items()}
    notes = []
    for old, name in RENAMED.items():
        group, key = old.split(".")
        if isinstance(new.get(group), dict) and key in new[group]:
            to_group, to_key = name.split(".")
            value = new[group].pop(key)
            if isinstance(new.setdefault(to_group, {}), dict):
                new[to_group].setdefault(to_key, value)
            notes.append(f"{old} is now called {name}")
    published = new.get("published")
    if isinstance(published, dict) and any(isinstance(value, (int, float)) for value in published.values()):
        new["published"] = {"results": {method: {"top1": value} for method, value in published.items()}}
    model = new.get("model")
    if isinstance(model, dict) and model.get("branches") == "paper" and set(new) >= WHOLE and "teacher" not in new:
        new["model"] = model | {"branches": "default"}  # a whole config from when "paper" was the default
    for old, only in REMOVED.items():
        group, key = old.split(".")
        if isinstance(new.get(group), dict) and key in new[group] and new[group].pop(key) != only:
            raise UserError(f"{old} was removed; every run is as with '{only}'")
    return new, notes


def leaves(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path to value; the groups of a config are opened, dicts that are values are not."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        is_group = not prefix and isinstance(value, dict) and key not in ("published", "differs")
        found |= leaves(value, f"{key}.") if is_group else {prefix + key: value}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
