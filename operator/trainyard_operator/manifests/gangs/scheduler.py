"""The interface of a gang scheduler: what it needs in the pods and in the group object of an attempt."""

from typing import Protocol

from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.template import Manifest

GROUP_KIND = "PodGroup"
"""Kind of the group objects: it is the same for all gang schedulers, in API groups of their own."""


class GangScheduler(Protocol):
    """A scheduler that gives nodes to all pods of a group or to none."""

    api_version: str
    """API group and version of its group objects."""
    requirement: str
    """What the cluster needs for it, as the end of the sentence "spec.scheduling.gang: NAME needs ..."."""

    def group_spec(self, job: TrainingJob) -> Manifest:
        """Return the spec of the group of all pods of a job."""
        ...

    def labels(self, group: str) -> dict[str, str]:
        """Return the labels of the pods of a group."""
        ...

    def annotations(self, group: str) -> dict[str, str]:
        """Return the annotations of the pods of a group."""
        ...

    def pod_fields(self, group: str) -> Manifest:
        """Return the fields of the spec of the pods of a group."""
        ...

    @property
    def scheduler_name(self) -> str | None:
        """Name of the scheduler, unless the template names another; None: the default scheduler."""
        ...


def group_priority(job: TrainingJob) -> Manifest:
    """Return the field priorityClassName of a group, with the class of its pods; empty if they have none.

    A group without a class would have another priority than its pods.
    """
    scheduling, template = job.spec.scheduling, job.spec.workers.template.spec
    name = (scheduling.priority_class_name if scheduling else None) or template.get("priorityClassName")
    return {"priorityClassName": name} if name else {}
