"""Several runs: methods by seeds, one after another or at the same time."""
