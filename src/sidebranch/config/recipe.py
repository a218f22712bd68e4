"""Recipes and run configs: YAML on disk, `Config` in memory. A misspelt key is an error that names the nearest one."""

from __future__ import annotations

import re
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from sidebranch.config.compare import as_dict, changed_from_defaults, up_to_date
from sidebranch.config.schema import Config
from sidebranch.errors import Notice, UserError, nearest

CONFIG_FILE = "config.yaml"
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast
FORMER_NAMES = {"folder/resnet32": "folder/scratch"}


def shipped() -> dict[str, Path]:
    """The recipes of the package: name ("cifar100/resnet32") to file."""
    root = Path(str(files("sidebranch") / "recipes"))
    found = {str(path.relative_to(root).with_suffix("")): path for path in root.rglob("*.yaml")}
    return dict(sorted(found.items()))


def find(recipe: str) -> Path:
    """The file of a recipe: a shipped name, the path of a YAML file, or a run folder.

    Raises:
        UserError: it is none of these.
    """
    known = shipped()
    recipe = FORMER_NAMES.get(recipe, recipe)
    if recipe in known:
        return known[recipe]
    path = Path(recipe)
    if (path / CONFIG_FILE).is_file():
        return path / CONFIG_FILE
    if path.is_dir():
        one = "market1501/mobilenet-short" if (path / "bounding_box_train").is_dir() else "folder/scratch"
        raise UserError(
            f"'{recipe}' is a folder without {CONFIG_FILE}, neither a recipe nor a run; to train on images in it: "
            f"sidebranch train {one} --data.root {recipe}"
        )
    if path.is_file():
        return path
    raise UserError(f"no recipe '{recipe}', neither shipped nor a file; {nearest(recipe, known)}")


def layers(path: Path) -> list[Path]:
    """The files of a recipe and of the recipes that it is based on, the base first."""
    chain = [path]
    while base := _base_of(chain[0]):
        if len(chain) > 10:
            raise UserError(f"{path}: the `base` of these recipes is circular")
        beside = [chain[0].parent / name for name in (base, f"{base}.yaml")]
        chain.insert(0, next((each for each in beside if each.is_file()), None) or find(base))
    return chain


def _base_of(path: Path) -> str:
    content = _content(path)
    base = content.get("base") if isinstance(content, dict) else None
    return base if isinstance(base, str) else ""


def _content(path: Path) -> Any:
    """What a recipe's file holds; the parser reports files that are not YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no recipe: it is not text") from error
    except (OSError, yaml.YAMLError):
        return None


def flags(path: Path) -> list[str]:
    """The command-line arguments with which a `config_parser` reads a recipe; warns of renamed fields."""
    words = []
    for layer in layers(path):
        content = _content(layer)
        new, notes = up_to_date(content) if isinstance(content, dict) else (content, [])
        if notes:
            warnings.warn(f"{layer}: {'; '.join(notes)}", Notice, stacklevel=2)
        words += ["--config", str(layer) if new == content else yaml.safe_dump(new)]
    return words


def name_of(recipe: str) -> str:
    """The name of a recipe's runs: "cifar100-resnet32" of "cifar100/resnet32", "resnet32" of "some/resnet32.yaml"."""
    recipe = FORMER_NAMES.get(recipe, recipe)
    path = Path(recipe)
    if recipe in shipped():
        return recipe.replace("/", "-")
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.name != CONFIG_FILE else path.resolve().parent.name


def run_name(recipe: str, config: Config) -> str:
    """The name of a run: its own, or the recipe's, with the network's if the recipe leaves the network open."""
    if config.name:
        return config.name
    is_open = FORMER_NAMES.get(recipe, recipe).startswith("folder/")
    is_other = is_open or config.model.name != load(find(recipe)).model.name
    return "-".join([name_of(recipe), config.model.name] if is_other else [name_of(recipe)])


def config_parser(**options: Any) -> ArgumentParser:
    """A parser whose flags are the config's fields (`--optim.lr 0.05`) and that reads YAML files (`--config FILE`)."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None, **options)
    parser.add_argument("--config", action="config", help="A YAML file; it overrides what stands to its left.")
    parser.add_class_arguments(Config, as_group=False)
    return parser


def to_config(parser: ArgumentParser, parsed: Namespace) -> Config:
    """The dataclass from the values that a `config_parser` read; other arguments are ignored."""
    fields = set(Config.__dataclass_fields__)
    built = parser.instantiate(parsed)
    config = Config(**{key: value for key, value in vars(built).items() if key in fields})
    return replace(config, base="")  # all values are set now


def parse(arguments: Sequence[str], where: object) -> Config:
    """A config from arguments such as `flags` gives.

    Args:
        arguments: of a `config_parser`.
        where: the source, for messages.
    """
    parser = _parser()
    try:
        return to_config(parser, parser.parse_args(list(arguments)))
    except ArgumentError as error:
        raise UserError(f"{where}: {explain(error, keys(as_dict(Config())))}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{where} is no recipe: it must be YAML, a mapping of the config's fields") from error


@cache
def _parser() -> ArgumentParser:
    return config_parser()


def load(path: Path) -> Config:
    """A config from a YAML file; fields that it leaves out have their defaults.

    Raises:
        UserError: a key or a value in the file is wrong.
    """
    return parse(flags(path), path)


def dump(config: Config) -> str:
    """All fields as YAML; `load` of it gives an equal config."""
    return yaml.dump(as_dict(config), Dumper=_Dumper, sort_keys=False)


def dump_changes(config: Config) -> str:
    """The fields that differ from the defaults, as YAML; `load` of it gives an equal config."""
    return yaml.safe_dump(changed_from_defaults(config), sort_keys=False)


def keys(nested: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted paths of a nested dict, groups included."""
    found = []
    for key, value in nested.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += keys(value, f"{prefix}{key}.")
    return found


def explain(error: Exception, valid: Iterable[str]) -> str:
    """The parser's error in one line, with the nearest key if one is misspelt."""
    text = " ".join(str(error).split())
    valid = list(valid)
    if found := re.search(r"Parser key \"(\w+)\": Unable to load config", text):
        fields = [key for key in valid if key.startswith(f"{found[1]}.")]
        named = f"{found[1]}.name" if f"{found[1]}.name" in fields else fields[0]
        return f"'{found[1]}' is a group of fields; give one of them, such as --{named}"
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        key = f"{found[1]}.{found[2]}"
        return f"unknown key '{key}'; {nearest(key, valid, most=1)}"
    if found := re.search(
        r"(?:Key|option|Option) '([\w.]+)' is not (?:expected|accepted)|does not accept option '([\w.]+)'", text
    ):
        key = found[1] or found[2]
        return f"unknown key '{key}'; {nearest(key, valid, most=1)}"
    if found := re.search(r"the following arguments are required: (.*)", text):
        return (
            f"the command lacks {', '.join(each.split('.')[-1].upper() for each in found[1].split(', '))}; see --help"
        )
    if found := re.search(r"[Uu]nrecognized arguments: (.*)", text):
        flag = found[1].split()[0].split("=")[0]
        if flag.lstrip("-") in REMOVED_FLAGS:
            return f"unknown argument '{flag}'; {REMOVED_FLAGS[flag.lstrip('-')]}"
        ends = [key for key in valid if key.endswith(f".{flag.lstrip('-')}")]
        hint = f"did you mean '{ends[0]}'?" if len(ends) == 1 else nearest(flag.lstrip("-"), valid, most=1)
        hint = hint.replace("did you mean '", "did you mean '--")
        return f"unknown argument '{flag}'; {hint}"
    if found := re.search(r"Parser key \"(\w+)\": .* NestedArg\(key='([\w.]+)'", text):
        return f"unknown argument '--{found[1]}.{found[2]}'; did you mean '--{found[1]}'?"
    if found := re.search(r'Parser key "([\w.]+)": Expected an? (.*?)\.? Got value: (.*)', text):
        return f"{found[1]} is {found[3]}; it must be {_type_in_words(found[2])}"
    if found := re.search(r'Parser key "([\w.]+)": .*Subtypes: \[(.*?)\] Errors: .*Given value: (.*)', text):
        kinds = [*map(_type_in_words, re.findall(r"<class '\w+'>|typing\.Literal\[.*?\]", found[2]))]
        kinds += [words for kind, words in COLLECTIONS.items() if f"{kind}[" in found[2]]
        return f"{found[1]} is {found[3]}; it must be {' or '.join(kinds)}"
    return text


REMOVED_FLAGS = {
    "model.depth": "it is now called 'branches.count'",
    "branches.depth": "it is now called 'branches.keep'",
    "runtime.strategy": "it was removed: several devices always train with DDP",
}


COLLECTIONS = {"tuple": "a list, such as [a, b]", "dict": "a mapping, such as {a: 1}, with a space after the colon"}


def _type_in_words(name: str) -> str:
    name = name.replace("typing.", "").replace("<class '", "").replace("'>", "")
    if name.lower().startswith("tuple"):
        return COLLECTIONS["tuple"]
    return re.sub(r"^Literal\[(.*)\]$", r"one of \1", name)
