"""Runs: from a config to a trained network and a folder that says how."""

from sidebranch.engine.config import Config
from sidebranch.engine.loop import train
from sidebranch.engine.processes import is_main_process
from sidebranch.engine.progress import ConsoleReporter, Silent
from sidebranch.engine.resume import is_of
from sidebranch.engine.run_folder import RunFolder
from sidebranch.engine.signals import Interrupted

__all__ = ["Config", "ConsoleReporter", "Interrupted", "RunFolder", "Silent", "is_main_process", "is_of", "train"]
