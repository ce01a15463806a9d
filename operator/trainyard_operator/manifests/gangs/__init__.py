"""Gang schedulers: the registry, and the group object of an attempt. Each scheduler is a file."""

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.children import child_metadata
from trainyard_operator.manifests.gangs.coscheduling import Coscheduling
from trainyard_operator.manifests.gangs.native import Native
from trainyard_operator.manifests.gangs.scheduler import GROUP_KIND, GangScheduler
from trainyard_operator.manifests.gangs.volcano import Volcano
from trainyard_operator.manifests.template import Manifest

GANG_SCHEDULERS: dict[str, GangScheduler] = {
    "native": Native(),
    "coscheduling": Coscheduling(),
    "volcano": Volcano(),
}
"""Gang schedulers by their name in spec.scheduling.gang."""


def gang_scheduler(job: TrainingJob) -> GangScheduler | None:
    """Return the gang scheduler of a job; None if its pods are scheduled one by one."""
    return GANG_SCHEDULERS.get(job.spec.scheduling.gang) if job.spec.scheduling else None


def group_name(job: TrainingJob, attempt: int) -> str:
    """Return the name of the group of an attempt, for gang schedulers and queues alike."""
    return f"{job.metadata.name}-{attempt}"


def unavailable(gang: str, refusal: str) -> str:
    """Return the message about a group object of a gang scheduler that the API server has refused, with the fix."""
    scheduler = GANG_SCHEDULERS[gang]
    return (
        f"spec.scheduling.gang: {refusal}; {gang} needs {scheduler.requirement}; the operator needs the "
        f"rights get, create and deletecollection on podgroups of {scheduler.api_version}, which its chart grants; "
        "provide what is missing, or suspend the job and set another gang"
    )


def build_group(job: TrainingJob, attempt: int) -> Manifest | None:
    """Return the group object of an attempt; None if its pods are scheduled one by one.

    Each attempt has a group of its own: what a scheduler remembers of one, as that it was scheduled once, does not
    apply to the next, and its size never changes. `job` is the job at the size of the attempt.
    """
    scheduler = gang_scheduler(job)
    if scheduler is None:
        return None
    return {
        "apiVersion": scheduler.api_version,
        "kind": GROUP_KIND,
        "metadata": child_metadata(job, group_name(job, attempt), {constants.LABEL_ATTEMPT: str(attempt)}),
        "spec": scheduler.group_spec(job),
    }
