"""The command line. Each command is a file that imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import importlib
import io
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sidebranch.errors import Notice, UserError, nearest

# Command to its file and its line in the help.
COMMANDS = {
    "demo": ("demo", "See the effect in minutes, offline."),
    "train": ("train", "Train a network with side branches; ship the plain backbone."),
    "eval": ("evaluate", "Evaluate a run on its validation images."),
    "export": ("export", "Write what ships: timm, ONNX, torch.export; a branch, early exit."),
    "predict": ("predict", "Say what is on photographs, with a run or anything exported."),
    "embed": ("embed", "Write the features of photographs."),
    "search": ("search", "Find the photographs nearest to one."),
    "recipes": ("recipes", "List the shipped recipes."),
    "report": ("report", "Write one HTML page that compares runs."),
    "branches": ("branches", "Show a backbone's forks and what branches would cost."),
    "study": ("study", "Train a table of methods and seeds; paired differences, a page."),
    "inspect": ("inspect", "Draw the papers' figures of runs: curves, kernels, gradients."),
    "prepare": ("prepare", "Check, split, sort, pack or generate a data set."),
}
HELP = """usage: sidebranch COMMAND ...

Train image classifiers with side branches, ship them without.

{commands}

More about one:  sidebranch COMMAND --help
"""
# Packages of the extra `train`, which `pip install sidebranch` leaves out.
EXTRA = (
    "jsonargparse",
    "yaml",
    "rich",
    "lightning",
    "filelock",
    "safetensors",
    "matplotlib",
    "altair",
    "vl_convert",
    "tensorboard",
    "sklearn",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0; 1, `prepare` found faults; 2, bad input; 75, a process was lost;
    128 + n, signal n came."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" shows "?", not a traceback
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Notice)
            warnings.showwarning = _show
            return _run(arguments)
    except UserError as error:
        print(f"sidebranch: {_rank()}{error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA:
            raise
        print(
            f"sidebranch: the command needs {error.name}, which is not installed: pip install 'sidebranch[train]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("sidebranch: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE


def command(name: str) -> Any:
    """The module of a command: `parser()` and `run(arguments)`.

    Raises:
        UserError: there is no such command.
    """
    if name not in COMMANDS:
        raise UserError(f"no command '{name}'; {nearest(name, COMMANDS)}")
    return importlib.import_module(f"sidebranch.cli.{COMMANDS[name][0]}")


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-V", "--version"):
        print(f"sidebranch {version('sidebranch')}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<10}{line}" for name, (_, line) in COMMANDS.items())), end="")
        return 0
    return command(arguments[0]).run(arguments[1:])


def _show(message: Warning | str, category: type[Warning], *where: Any) -> None:
    is_ours = category is Notice or Path(where[0]).is_relative_to(Path(__file__).parent.parent)
    text = f"sidebranch: {message}\n" if is_ours else warnings.formatwarning(message, category, *where[:2])
    print(text, end="", file=sys.stderr)


def _rank() -> str:
    """Which process this is, among several that train together."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized() or not torch.distributed.get_rank():
        return ""
    return f"process {torch.distributed.get_rank()}: "
