"""The types of what is public are written out, as `basedpyright --verifytypes` reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import sidebranch as sb

LIBRARY = {"core", "branches", "errors", "_attach", *sb.__all__}  # what needs torch and timm alone


def test_the_types_of_the_library_are_complete():
    command = [
        Path(sys.executable).parent / "basedpyright",
        "--verifytypes",
        "sidebranch",
        "--ignoreexternal",
        "--outputjson",
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it asks the first `python` there
    found = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    symbols = json.loads(found.stdout)["typeCompleteness"]["symbols"]
    named = {symbol["name"].split(".")[1] for symbol in symbols}
    assert set(sb.__all__) <= named
    unclear = [
        f"{symbol['name']}: {each['message']}"
        for symbol in symbols
        if symbol["name"].split(".")[1] in LIBRARY and not symbol["isTypeKnown"]
        for each in symbol["diagnostics"]
    ]
    assert not unclear, "\n".join(unclear)
