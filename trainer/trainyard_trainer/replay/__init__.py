"""Steps of a run again, in one process whatever its layout was: to name the samples of a step, and to verify a run."""
