"""The `trainyard` command, also `kubectl trainyard`."""
