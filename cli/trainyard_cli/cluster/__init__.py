"""Client of a cluster: login, requests, errors, retries, logs and metrics of ranks."""
