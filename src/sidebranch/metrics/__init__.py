"""Metrics of predictions: top-k, mAP and CMC, and their sums over batches."""

from sidebranch.metrics.ranking import People, Ranker, Ranking, distances_between, rank
from sidebranch.metrics.top_k import top_k_hits

__all__ = ["People", "Ranker", "Ranking", "distances_between", "rank", "top_k_hits"]
