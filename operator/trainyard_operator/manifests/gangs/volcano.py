"""The scheduler Volcano."""

from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.gangs.scheduler import group_priority
from trainyard_operator.manifests.template import Manifest


class Volcano:
    """Volcano has queues of its own, to which groups belong."""

    api_version = "scheduling.volcano.sh/v1beta1"
    requirement = (
        "Volcano: its CRD podgroups.scheduling.volcano.sh and its scheduler, whose name is volcano, unless "
        "spec.workers.template.spec.schedulerName names another"
    )
    scheduler_name = "volcano"

    def group_spec(self, job: TrainingJob) -> Manifest:
        """Return a group of which all members are required, in the queue of the job."""
        queue = job.spec.scheduling.queue if job.spec.scheduling else None
        return {"minMember": job.spec.pods, **({"queue": queue} if queue else {}), **group_priority(job)}

    def labels(self, group: str) -> dict[str, str]:
        """Return no labels: an annotation refers to the group."""
        return {}

    def annotations(self, group: str) -> dict[str, str]:
        """Return the annotation that refers to the group; Volcano makes a group of its own for pods without it."""
        return {"scheduling.k8s.io/group-name": group}

    def pod_fields(self, group: str) -> Manifest:
        """Return no fields: an annotation refers to the group."""
        return {}
