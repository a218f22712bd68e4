"""Errors in the user's input, in one line each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, in one line: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with status 2.
    """


class Notice(UserWarning):
    """Something that the user should know, in one line. The command line prints it as it is."""


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, valid: Iterable[str], most: int = 3) -> str:
    """A hint for a misspelt name: "did you mean 'a' or 'b'?", or the valid names where none is near."""
    valid = sorted(set(valid))
    near = difflib.get_close_matches(name, valid, n=most, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(f"'{item}'" for item in near) + "?"
    listed = ", ".join(valid[:12]) + (", ..." if len(valid) > 12 else "")
    return f"choose from: {listed}" if valid else "there is nothing to choose from"
