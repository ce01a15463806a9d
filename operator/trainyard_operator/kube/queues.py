"""The queues of Kueue, as far as the operator reads them: whether there is one of a name."""

from trainyard_operator.kube.api import ApiError, KubeApi

_GROUP = "kueue.x-k8s.io"
_OTHERWISE = "suspend the job and change spec.scheduling.queue"


async def find_queue_problem(api: KubeApi, namespace: str, queue: str) -> str | None:
    """Return why a LocalQueue cannot be used, with the fix; None if it exists.

    Raises:
        ApiError: the API server did not answer.
    """
    try:
        group = await api.request("GET", f"/apis/{_GROUP}")
    except ApiError as error:
        if error.code != 404:
            raise
        return (
            f"spec.scheduling.queue: the cluster does not serve {_GROUP}; install Kueue with its integration pod, or "
            f"{_OTHERWISE}"
        )
    # Any version will do: only the existence matters.
    version = group["preferredVersion"]["groupVersion"]
    try:
        await api.request("GET", f"/apis/{version}/namespaces/{namespace}/localqueues/{queue}")
    except ApiError as error:
        if error.code == 404:
            return (
                f"spec.scheduling.queue: the namespace {namespace} has no LocalQueue {queue}; create it, or "
                f"{_OTHERWISE} (kubectl get localqueues -n {namespace} lists those that exist)"
            )
        if error.code == 403:
            return (
                f"spec.scheduling.queue: {error}; give the operator the right to read (get) localqueues of "
                f"{_GROUP}, which its chart grants"
            )
        raise
    return None
