"""How a JobSet spells what the cases are about, by its API reference (jobset.x-k8s.io/v1alpha2).

Its pods belong to Jobs, so a cluster needs the Job controller of kube-controller-manager besides that of JobSet.
"""

from tests.conformance.model import Backend, Identity, Job, Object

_PREFIX = "jobset.sigs.k8s.io"


class JobSetMapping:
    """JobSet with one replicated job of one indexed Job, as its guide shows for PyTorch."""

    name = "jobset"
    features = frozenset({"any", "suspend", "ttl", "managed by", "gang restart", "service"})
    api = "/apis/jobset.x-k8s.io/v1alpha2"
    plural = "jobsets"

    def manifest(self, job: Job, backend: Backend) -> Object:
        """Return a JobSet that restarts all of its Jobs; a Job itself never replaces a pod."""
        container = {"name": "worker", "image": backend.image, "command": list(backend.command)}
        pod = {"spec": {"restartPolicy": "Never", "containers": [{**container, "resources": backend.resources}]}}
        template = {
            "completions": job.workers,
            "parallelism": job.workers,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "template": pod,
        }
        limits = {"ttlSecondsAfterFinished": job.ttl, "managedBy": job.manager}
        spec = {
            "suspend": job.suspended,
            "failurePolicy": {"maxRestarts": job.restarts},
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "replicatedJobs": [{"name": "worker", "replicas": 1, "template": {"spec": template}}],
            **{name: value for name, value in limits.items() if value is not None},
        }
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": job.name},
            "spec": spec,
        }

    def identity(self, pod: Object) -> Identity | None:
        """Return the restart attempt, which JobSet counts from 0, and the completion index."""
        labels = pod["metadata"].get("labels", {})
        attempt, index = (
            labels.get(f"{_PREFIX}/restart-attempt"),
            labels.get("batch.kubernetes.io/job-completion-index"),
        )
        return None if attempt is None or index is None else (int(attempt) + 1, int(index))

    def state(self, job: Object) -> str:
        """Return the state by the terminal state, the condition Suspended and the counts of ready Jobs."""
        status = job.get("status", {})
        if terminal := status.get("terminalState"):
            return "Succeeded" if terminal == "Completed" else str(terminal)
        held = {c["type"] for c in status.get("conditions", ()) if c["status"] == "True"}
        if "Suspended" in held:
            return "Suspended"
        ready = [entry.get("ready", 0) for entry in status.get("replicatedJobsStatus", ())]
        return "Running" if ready and all(ready) else "Pending"

    def restarts(self, job: Object) -> int:
        """Return restartsCountTowardsMax."""
        return int(job.get("status", {}).get("restartsCountTowardsMax", 0))

    def suspend(self, value: bool) -> Object:
        """Return a patch of spec.suspend."""
        return {"spec": {"suspend": value}}

    def environment(self, index: int, workers: int) -> Object:
        """Return only the completion index: the rest is up to the template of a user."""
        return {"JOB_COMPLETION_INDEX": str(index)}
