"""What ties the core to a cluster: kopf's watch streams, the API client, health and metrics."""
