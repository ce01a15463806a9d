"""Data sets as numbered samples, and the batches that each rank reads."""
