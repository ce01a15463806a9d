"""Evaluation: sums over samples, the metrics that follow from them, and reports."""
