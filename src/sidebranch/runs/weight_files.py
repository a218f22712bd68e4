"""The files with weights that a run starts from or is taught by, and their identity. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from sidebranch.config.method import TeacherConfig
from sidebranch.config.schema import Config
from sidebranch.errors import UserError
from sidebranch.runs.folder import RunFolder
from sidebranch.weights import weights_file


def teacher_file(teacher: TeacherConfig) -> Path | None:
    """The file with one teacher's weights; None for timm's own, which are downloaded.

    Raises:
        UserError: it is missing.
    """
    if teacher.run:
        assert isinstance(teacher.run, str)
        folder = RunFolder(Path(teacher.run))
        if not folder.config.is_file() or not folder.weights.is_file():
            raise UserError(
                f"teacher.run '{teacher.run}' is no finished run: it has no {folder.config.name} or no "
                f"{folder.weights.name}"
            )
        return folder.weights
    if teacher.weights and not Path(teacher.weights).is_file():
        raise UserError(f"teacher.weights '{teacher.weights}' is no file")
    return Path(teacher.weights) if teacher.weights else None


def with_hashes(config: Config, resuming: bool = False) -> Config:
    """The config with the hashes of the weights that it names, so that no others are taken for them.

    Args:
        config: of a run.
        resuming: the weights to start from are in the run's checkpoint, so their file may be gone.

    Raises:
        UserError: a file is missing, or has not the weights that the config names.
    """
    model, teacher = config.model, config.teacher
    if model.weights and not (resuming and model.sha256):
        found = _hash(weights_file(model.weights), model.sha256, "model")
        config = replace(config, model=replace(model, sha256=found))
    if config.method == "kd":
        files = [(teacher_file(each), each.sha256) for each in teacher.each]
        found = [_hash(path, known, "teacher") for path, known in files if path is not None]
        config = replace(config, teacher=replace(teacher, sha256=",".join(found)) if found else teacher)
    return config


def _hash(path: Path, known: str, group: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if known not in ("", found):
        whose = {"model": "the weights", "teacher": "the teacher's weights"}[group]
        raise UserError(
            f"{whose} '{path}' are not those that the config names: their sha256 is {found}, not {known}; give the "
            f"same file, or leave out {group}.sha256"
        )
    return found
