"""How a TrainingJob spells what the cases are about, by its documentation (README.md, docs/programs.md)."""

from tests.conformance.model import Backend, Identity, Job, Object

_PREFIX = "trainyard.dev"


class TrainyardMapping:
    """TrainingJob of trainyard.dev/v1alpha1."""

    name = "trainyard"
    features = frozenset(
        {"own fields", "native gangs", "any", "suspend", "ttl", "managed by", "rendezvous", "service", "gang restart"}
    )
    api = f"/apis/{_PREFIX}/v1alpha1"
    plural = "trainingjobs"

    def manifest(self, job: Job, backend: Backend) -> Object:
        """Return a job whose restarts wait as briefly as the operator allows."""
        spec = {**job.spec}
        program = {"image": backend.image, "command": list(backend.command)} if job.program else {}
        workers = {"replicas": job.workers, **spec.pop("workers", {})}
        if backend.resources:
            workers.setdefault("resources", backend.resources)
        policy = {"maxRestarts": job.restarts, "backoff": {"initialSeconds": 0}, **spec.pop("restartPolicy", {})}
        limits = {"suspend": job.suspended or None, "ttlSecondsAfterFinished": job.ttl, "managedBy": job.manager}
        given = {name: value for name, value in limits.items() if value is not None}
        return {
            "apiVersion": f"{_PREFIX}/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": job.name},
            "spec": {"workers": workers, "restartPolicy": policy, **program, **given, **spec},
        }

    def identity(self, pod: Object) -> Identity | None:
        """Return the attempt and the index in the labels of a worker; None for servers and placeholders."""
        labels = pod["metadata"].get("labels", {})
        if labels.get(f"{_PREFIX}/role") != "worker":
            return None
        return int(labels[f"{_PREFIX}/attempt"]), int(labels[f"{_PREFIX}/index"])

    def state(self, job: Object) -> str:
        """Return the phase."""
        return str(job.get("status", {}).get("phase") or "")

    def restarts(self, job: Object) -> int:
        """Return restartsCounted."""
        return int(job.get("status", {}).get("restartsCounted", 0))

    def suspend(self, value: bool) -> Object:
        """Return a patch of spec.suspend."""
        return {"spec": {"suspend": value}}

    def environment(self, index: int, workers: int) -> Object:
        """Return what docs/programs.md says; an address that depends on the namespace is a case of its own."""
        rank = {"RANK": str(index), "LOCAL_RANK": "0", "WORLD_SIZE": str(workers)}
        return {**rank, "MASTER_PORT": "29500", "PET_NODE_RANK": str(index), "PET_NNODES": str(workers)}
