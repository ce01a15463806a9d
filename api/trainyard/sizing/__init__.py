"""Memory and traffic of the ranks of the built-in trainer, estimated from the configuration alone."""
