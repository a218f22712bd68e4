"""The file with an outside teacher's weights, and its identity. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from sidebranch.config.schema import Config
from sidebranch.errors import UserError
from sidebranch.runs.folder import RunFolder


def teacher_file(config: Config) -> Path | None:
    """The file with the teacher's weights; None for timm's own, which are downloaded.

    Raises:
        UserError: it is missing.
    """
    teacher = config.teacher
    if teacher.run:
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


def with_teacher_hash(config: Config) -> Config:
    """The config with the hash of its teacher's weights, so that no other teacher is taken for this one.

    Raises:
        UserError: the weights are missing, or are not those that the config names.
    """
    path = teacher_file(config) if config.method == "kd" else None
    if path is None:
        return config
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if config.teacher.sha256 not in ("", found):
        raise UserError(
            f"the teacher's weights '{path}' are not those that the config names: their sha256 is {found}, not "
            f"{config.teacher.sha256}; give the same file, or leave out teacher.sha256"
        )
    return replace(config, teacher=replace(config.teacher, sha256=found))
