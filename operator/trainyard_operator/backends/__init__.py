"""The worlds that a plan is applied to: a Kubernetes cluster, or the processes of one machine."""
