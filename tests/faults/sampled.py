"""A quick third of the fault injections runs with every test; `make test-faults` runs all."""

import pytest


def one_in_three(values):
    """The values as parameters, two of three marked."""
    return [pytest.param(each, marks=pytest.mark.faults if at % 3 else ()) for at, each in enumerate(values)]
