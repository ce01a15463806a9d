"""The built-in trainer: what runs inside a worker."""
