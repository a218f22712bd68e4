"""Parsers of the commands, with errors in one line."""

from __future__ import annotations

import re
import textwrap
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from sidebranch.config.recipe import explain
from sidebranch.errors import UserError


class Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Fills the paragraphs of the descriptions, and keeps the lines of examples, which are meant to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = re.split(r"\n\n+", text.strip())
        return "\n\n".join(part if re.search(r"^ ", part, re.M) else textwrap.fill(part, width) for part in parts)


def plain_parser(command: str, description: str, **options: Any) -> ArgumentParser:
    """A parser of one command."""
    return ArgumentParser(
        prog=f"sidebranch {command}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=Help,
        **options,
    )


def add_checkpoint_arguments(parser: ArgumentParser) -> None:
    """The arguments that name a checkpoint: of a run, or of the papers' public code."""
    parser.add_argument("run", type=str, help="A run folder; with --weights, a recipe.")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="Which checkpoint.")
    parser.add_argument("--weights", type=str, default="", help="A checkpoint of the papers' public code (.pth).")


def parse(parser: ArgumentParser, arguments: Sequence[str], valid: Iterable[str] = ()) -> Namespace:
    """The parsed arguments.

    Args:
        parser: of the command.
        arguments: after the command.
        valid: names to suggest for a misspelt one.

    Raises:
        UserError: an argument is wrong.
    """
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(explain(error, valid or options_of(parser))) from error


def options_of(parser: ArgumentParser) -> list[str]:
    """The names of a parser's flags, without their dashes."""
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    return [flag.lstrip("-") for flag in flags if flag != "--print_shtab"]  # hidden: jsonargparse's own
