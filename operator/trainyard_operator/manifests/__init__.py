"""Builders: from a job to the manifests of its children, as plain dictionaries, without I/O."""
