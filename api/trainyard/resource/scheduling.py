"""`spec.scheduling` and `status.scheduling`: how the pods of a group get their nodes, and how long they have waited."""

from typing import Annotated, Literal

from pydantic import Field

from trainyard.base import ApiModel, Count, Rule, Timestamp

_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


class Scheduling(ApiModel):
    """How the pods of the group get their nodes: all or none, in a queue, with a priority, close to each other."""

    gang: Literal["none", "native", "coscheduling", "volcano"] = "none"
    """Scheduler that gives nodes to all pods of the group or to none, so that two groups that each hold half of the
    nodes cannot block each other.
    none: the pods are scheduled one by one; schedulingTimeoutSeconds resolves such a situation.
    native: Kubernetes itself (PodGroup of scheduling.k8s.io/v1beta1, from 1.37 on; needs the feature gate
    GenericWorkload in kube-apiserver and kube-scheduler).
    coscheduling: the plugin of that name of the scheduler-plugins project (PodGroup of scheduling.x-k8s.io/v1alpha1).
    volcano: Volcano (PodGroup of scheduling.volcano.sh/v1beta1).
    Without that scheduler no pod is created, and the condition Running has the reason GangUnavailable. Defaults to
    none."""
    queue: Annotated[str, Field(max_length=63, pattern=_NAME)] | None = None
    """Queue in which the job waits until there is quota for all of its pods: a LocalQueue of Kueue in the namespace of
    the job, or with gang: volcano a Queue of Volcano. Its pods exist while they wait in a queue of Kueue, and hold
    nothing. A preemption by Kueue spends no restart. Not with spec.elastic. No queue if absent."""
    priority_class_name: Annotated[str, Field(max_length=253, pattern=_NAME)] | None = None
    """PriorityClass of all pods and of their group. Defaults to that of the template, else to the cluster's default."""
    topology_key: Annotated[str, Field(max_length=317, pattern=_LABEL_KEY)] | None = None
    """Label of nodes whose values name the topology domains with a fast network, for example
    topology.kubernetes.io/rack. Workers of one tensor, expert or context group get nodes of one domain: always in a
    queue of Kueue, and without it if there is capacity when their turn comes. Other workers of the group get nodes of
    the same domain where possible. Without it the scheduler places pods by resources alone."""


class SchedulingStatus(ApiModel):
    """How long the group has been waiting for nodes, and how often it has given up; only with
    spec.schedulingTimeoutSeconds, and only until all pods of the group are scheduled.
    """

    waiting_since: Timestamp | None = None
    """Time since which pods of the current attempt exist that are not all scheduled; absent while there are none."""
    timeouts: Count = 0
    """Number of attempts in a row that were given up because not all of their pods were scheduled in time."""
    retry_time: Timestamp | None = None
    """Time from which the pods of the current attempt are created; absent while the pods of the attempt before it are
    ending, and for an attempt that need not wait."""


SCHEDULING_RULES = (
    Rule(
        "!has(self.elastic) || !has(self.scheduling) || !has(self.scheduling.queue)",
        "spec.scheduling.queue: a queue gives quota to a group of one size, and the single pods with which "
        "spec.elastic looks for capacity would wait in it in front of other jobs; remove one of them",
    ),
)
