"""The checkpoint that a stopped run continues from, if it belongs to the same config."""

from __future__ import annotations

from typing import Any

from sidebranch.config import recipe
from sidebranch.config.compare import as_dict, differences
from sidebranch.config.schema import Config
from sidebranch.distributed.processes import is_main_process
from sidebranch.errors import UserError
from sidebranch.runs import checkpoint
from sidebranch.runs.console import Reporter
from sidebranch.runs.folder import RunFolder


def state_to_resume(config: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any] | None:
    """The last checkpoint, or the previous one if the last is damaged; None for a run that has none yet.

    Raises:
        UserError: the folder has no run, both checkpoints are damaged, or the config differs.
    """
    if not folder.last.exists() and folder.previous.exists() and is_main_process():
        folder.fall_back()
    if folder.config.is_file() and not folder.last.exists():
        return None
    if not folder.root.exists() or not (folder.last.exists() or folder.previous.exists()):
        raise UserError(f"nothing was saved in '{folder.root}' yet; start without --resume")
    try:
        state = checkpoint.load(folder.last)
    except UserError as error:
        if not folder.previous.is_file():
            raise
        state = checkpoint.load(folder.previous)
        reporter.say(f"{error}; resuming from the previous checkpoint")
        if is_main_process():
            folder.fall_back()
    changed = differences(state["config"], as_dict(config))
    if changed:
        raise UserError(
            f"cannot resume '{folder.root}' with another config: {'; '.join(changed)}; start a new run for that"
        )
    return state


def is_run_of(folder: RunFolder, config: Config) -> bool:
    """Whether the run in a folder was started with this config."""
    try:
        return not differences(as_dict(recipe.load(folder.config)), as_dict(config))
    except UserError:
        return False
