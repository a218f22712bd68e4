"""Measures of predictions."""

from sidebranch.metrics.top_k import top_k_hits

__all__ = ["top_k_hits"]
