"""Accuracy and length of a model: sampling in units, rows, metrics, comparisons and tables."""
