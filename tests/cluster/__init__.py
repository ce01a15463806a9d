"""A real Kubernetes cluster for tests; `python -m tests.cluster --help` is its command line."""

from tests.cluster.api import build_images, down, prepare, status, up
from tests.cluster.model import Cluster, ClusterError, Profile

__all__ = ["Cluster", "ClusterError", "Profile", "build_images", "down", "prepare", "status", "up"]
