"""Data sets, checked, sorted or generated before training."""
