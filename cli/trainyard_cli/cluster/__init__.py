"""Commands that talk to a cluster: `trainyard list`, or `kubectl trainyard list`."""
