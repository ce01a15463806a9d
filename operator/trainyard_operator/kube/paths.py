"""Paths of the API server's collections."""

from trainyard.protocol import constants


def jobs_path(namespace: str | None = None) -> str:
    """Return the path of the TrainingJobs of a namespace, or of all namespaces."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{constants.API_VERSION}{within}/{constants.PLURAL}"


def core_path(plural: str, namespace: str | None = None) -> str:
    """Return the path of a core collection of a namespace, or of all namespaces."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/api/v1{within}/{plural}"
