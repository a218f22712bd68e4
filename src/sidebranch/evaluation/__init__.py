"""Evaluation of classifiers and of retrieval, in training and afterwards."""
