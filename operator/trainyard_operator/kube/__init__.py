"""The Kubernetes side of the operator: watch streams, API client, backend, lease, probes and metrics."""
