"""The plugin Coscheduling of scheduler-plugins."""

from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.template import Manifest


class Coscheduling:
    """Pods of a group wait for each other before they are bound to their nodes, and give up together.

    Groups have no priority of their own: that of their pods counts.
    """

    api_version = "scheduling.x-k8s.io/v1alpha1"
    requirement = (
        "the CRD podgroups.scheduling.x-k8s.io and a scheduler with the plugin Coscheduling of scheduler-plugins; its "
        "name is scheduler-plugins-scheduler, unless spec.workers.template.spec.schedulerName names another"
    )
    scheduler_name = "scheduler-plugins-scheduler"
    """Name of the second scheduler that the chart of scheduler-plugins installs."""

    def group_spec(self, job: TrainingJob) -> Manifest:
        """Return a group of which all members are required."""
        return {"minMember": job.spec.pods}

    def labels(self, group: str) -> dict[str, str]:
        """Return the label that refers to the group."""
        return {"scheduling.x-k8s.io/pod-group": group}

    def annotations(self, group: str) -> dict[str, str]:
        """Return no annotations: a label refers to the group."""
        return {}

    def pod_fields(self, group: str) -> Manifest:
        """Return no fields: a label refers to the group."""
        return {}
