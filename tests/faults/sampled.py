"""A quick share of the fault injections runs with every test; `make test-faults` runs all."""

import pytest


def one_in(share, values):
    """The values as parameters, but for one in `share` marked."""
    return [pytest.param(each, marks=pytest.mark.faults if at % share else ()) for at, each in enumerate(values)]
