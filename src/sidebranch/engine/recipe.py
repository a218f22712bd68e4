"""Recipes and run configs: YAML on disk, `Config` in memory. A misspelt key is an error that names the nearest one."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from sidebranch.engine.config import Config, as_dict
from sidebranch.errors import UserError, nearest

CONFIG_FILE = "config.yaml"


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, name ("cifar100/resnet32") to file."""
    root = Path(str(files("sidebranch") / "recipes"))
    found = {str(path.relative_to(root).with_suffix("")): path for path in root.rglob("*.yaml")}
    return dict(sorted(found.items()))


def find(recipe: str) -> Path:
    """The file of a shipped recipe's name, a YAML file's path, or a run folder's."""
    known = shipped()
    if recipe in known:
        return known[recipe]
    path = Path(recipe)
    if path.is_dir():
        path = path / CONFIG_FILE
    if path.is_file():
        return path
    raise UserError(f"no recipe '{recipe}', neither shipped nor a file; {nearest(recipe, known)}")


def layers(path: Path) -> list[Path]:
    """A recipe's file and, before it, those of the recipes that it is based on."""
    chain = [path]
    while base := _base_of(chain[0]):
        if len(chain) > 10:
            raise UserError(f"{path}: the recipes' bases go round in a circle")
        chain.insert(0, find(base))
    return chain


def _base_of(path: Path) -> str:
    """The `base` of a recipe; a file that is no mapping is left to the parser to complain of."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no recipe: it is not text") from error
    except (OSError, yaml.YAMLError):
        return ""
    base = content.get("base") if isinstance(content, dict) else None
    return base if isinstance(base, str) else ""


def flags(path: Path) -> list[str]:
    """The arguments by which a `config_parser` reads a recipe."""
    return [word for layer in layers(path) for word in ("--config", str(layer))]


def name_of(recipe: str) -> str:
    """What runs of a recipe are called: "cifar100/resnet32" and "some/where/resnet32.yaml" as far as they are short."""
    path = Path(recipe)
    if recipe in shipped():
        return recipe.replace("/", "-")
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.name != CONFIG_FILE else path.resolve().parent.name


def config_parser(**options: Any) -> ArgumentParser:
    """A parser whose flags are the config's fields (`--optim.lr 0.05`) and that reads YAML files (`--config FILE`)."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config="--print-config", **options)
    parser.add_argument("--config", action="config", help="A YAML file laid over what stands left of it.")
    parser.add_class_arguments(Config, as_group=False)
    return parser


def to_config(parser: ArgumentParser, parsed: Namespace) -> Config:
    """The dataclass out of what a `config_parser` read; keys of other arguments are left alone."""
    fields = set(Config.__dataclass_fields__)
    built = parser.instantiate(parsed)
    config = Config(**{key: value for key, value in vars(built).items() if key in fields})
    return replace(config, base="")  # the values are whole now


def load(path: Path) -> Config:
    """A config from a YAML file; what it does not say has its default."""
    parser = config_parser()
    try:
        return to_config(parser, parser.parse_args(flags(path)))
    except ArgumentError as error:
        raise UserError(f"{path}: {explain(error, keys(as_dict(Config())))}") from error
    except (TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no recipe: it must be YAML, a mapping of the config's fields ({error})") from error


def dump(config: Config) -> str:
    """The whole config as YAML; `load` of it gives an equal one."""
    return yaml.safe_dump(as_dict(config), sort_keys=False)


def keys(nested: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted paths of a nested dict, groups included."""
    found = []
    for key, value in nested.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += keys(value, f"{prefix}{key}.")
    return found


def explain(error: Exception, valid: Iterable[str]) -> str:
    """The parser's complaint in one line, with the nearest key where one is misspelt."""
    text = " ".join(str(error).split())
    valid = list(valid)
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        key = f"{found[1]}.{found[2]}"
        return f"unknown key '{key}'; {nearest(key, valid)}"
    if found := re.search(
        r"(?:Key|option|Option) '([\w.]+)' is not (?:expected|accepted)|does not accept option '([\w.]+)'", text
    ):
        key = found[1] or found[2]
        return f"unknown key '{key}'; {nearest(key, valid)}"
    if found := re.search(r"[Uu]nrecognized arguments: (.*)", text):
        flag = found[1].split()[0].split("=")[0]
        return f"unknown argument '{flag}'; {nearest(flag.lstrip('-'), valid)}"
    if found := re.search(r'Parser key "([\w.]+)": Expected an? (.*?)\.? Got value: (.*)', text):
        return f"{found[1]} is {found[3]}; it must be {_type_in_words(found[2])}"
    if found := re.search(r'Parser key "([\w.]+)": .*Subtypes: \[(.*?)\] Errors: .*Given value: (.*)', text):
        kinds = re.findall(r"<class '\w+'>|typing\.Literal\[.*?\]", found[2])
        return f"{found[1]} is {found[3]}; it must be {' or '.join(map(_type_in_words, kinds))}"
    return text


def _type_in_words(name: str) -> str:
    name = name.replace("typing.", "").replace("<class '", "").replace("'>", "")
    return re.sub(r"^Literal\[(.*)\]$", r"one of \1", name)
