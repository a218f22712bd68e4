"""Where a run that was stopped goes on: its last good checkpoint, if it is of the same config."""

from __future__ import annotations

from typing import Any

from sidebranch.engine import checkpoint, recipe
from sidebranch.engine.config import Config, as_dict, differences
from sidebranch.engine.processes import is_main_process
from sidebranch.engine.progress import Reporter
from sidebranch.engine.run_folder import RunFolder
from sidebranch.errors import UserError


def is_of(folder: RunFolder, config: Config) -> bool:
    """Whether the run in a folder is of this config."""
    try:
        return not differences(as_dict(recipe.load(folder.config)), as_dict(config))
    except UserError:
        return False


def state_to_resume(config: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any] | None:
    """The last checkpoint, or the one before if that is damaged; None for a run that was stopped before its first."""
    if not folder.last.exists() and folder.previous.exists() and is_main_process():
        folder.fall_back()
    if folder.config.is_file() and not folder.last.exists():
        return None
    try:
        state = checkpoint.load(folder.last)
    except UserError as error:
        if not folder.previous.is_file():
            raise
        state = checkpoint.load(folder.previous)
        reporter.say(f"{error}; going on from the one before")
        if is_main_process():
            folder.fall_back()
    changed = differences(state["config"], as_dict(config))
    if changed:
        raise UserError(f"cannot resume '{folder.root}' under another config: {'; '.join(changed)}")
    return state
