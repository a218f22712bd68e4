"""Registers the papers' networks with timm, as soon as timm is imported: before `import sidebranch` or after it.

Without it, `timm.create_model("cifar_resnet32")` would need an import of `sidebranch.zoo`, and an import of that in
`sidebranch` itself would take the seconds of torch and timm.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_networks() -> None:
    """Imports `sidebranch.zoo` now if timm is imported, else right after it is."""
    if sys.modules.get("timm") is not None:
        importlib.import_module("sidebranch.zoo")
    elif not any(isinstance(each, _AfterTimm) for each in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm(importlib.abc.MetaPathFinder):
    """Finds timm as usual, with a loader that imports the zoo afterwards."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module("sidebranch.zoo")

    def __getattr__(self, name: str) -> Any:  # get_source, is_package and the like
        return getattr(self.loader, name)
