"""The lifecycle of a job as pure functions: from an observation to a plan; no I/O and no clock."""
