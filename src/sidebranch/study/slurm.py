"""A study as a job array of SLURM: one cell an element. In: cells. Out: a script for `sbatch`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sidebranch.study.cells import Cell

SCRIPT = "array.sbatch"

TEMPLATE = """#!/bin/bash
# Trains the cells of a study, one an element: sbatch {script}
# Ninety seconds before its time is up, an element saves and goes back into the queue.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{parallel}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --time=24:00:00
#SBATCH --signal=USR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{logs}/slurm-%A-%a.log"

cells=(
{cells}
)

srun --cpus-per-task={cpus} {python} -m sidebranch study {root} --cell "${{cells[$SLURM_ARRAY_TASK_ID]}}"
status=$?

# 130, 138 and 143: stopped by a signal, all saved.
case $status in
    130 | 138 | 143) scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" ;;
esac
exit $status
"""


def array_script(cells: Sequence[Cell], root: Path, cpus: int, gpus: float, parallel: int) -> str:
    """The script.

    Args:
        cells: to train.
        root: the study's folder, on a file system that all machines share.
        cpus: of an element.
        gpus: of an element; SLURM gives whole ones.
        parallel: elements at a time.
    """
    root = root.resolve()
    return TEMPLATE.format(
        script=shlex.quote(str(root / SCRIPT)),
        name=re.sub(r"[^\w.-]+", "-", root.name),
        last=len(cells) - 1,
        parallel=parallel,
        cpus=cpus,
        gpus=f"#SBATCH --gpus-per-task={max(1, round(gpus))}\n" if gpus else "",
        logs=str(root / "logs").replace("%", "%%"),
        cells="\n".join(f"    {shlex.quote(cell.name)}" for cell in cells),
        python=shlex.quote(sys.executable),
        root=shlex.quote(str(root)),
    )
