"""Gang scheduling of Kubernetes itself (KEP 4671), beta in 1.37 and off by default."""

from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.gangs.scheduler import group_priority
from trainyard_operator.manifests.template import Manifest


class Native:
    """The plugin GangScheduling of kube-scheduler. A PodGroup need not refer to a Workload."""

    api_version = "scheduling.k8s.io/v1beta1"
    requirement = (
        "Kubernetes 1.37 or later whose kube-apiserver and kube-scheduler have the feature gate GenericWorkload, and "
        "whose kube-apiserver has --runtime-config=scheduling.k8s.io/v1beta1=true"
    )
    scheduler_name = None

    def group_spec(self, job: TrainingJob) -> Manifest:
        """Return a group that is scheduled, and preempted, as a whole: a restart of the job needs all of its pods."""
        return {
            "schedulingPolicy": {"gang": {"minCount": job.spec.pods}},
            "disruptionMode": {"all": {}},
            **group_priority(job),
        }

    def labels(self, group: str) -> dict[str, str]:
        """Return no labels: a field refers to the group."""
        return {}

    def annotations(self, group: str) -> dict[str, str]:
        """Return no annotations: a field refers to the group."""
        return {}

    def pod_fields(self, group: str) -> Manifest:
        """Return the field that refers to the group."""
        return {"schedulingGroup": {"podGroupName": group}}
