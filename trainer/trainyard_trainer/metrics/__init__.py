"""Metrics, traces and experiment tracking of a run."""
