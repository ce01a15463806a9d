"""The models. They know nothing of parallelism."""
