"""Gangs, queues, priorities and topology: what schedulers and queues find, and what the job says about them."""

from tests.conformance import then, when
from tests.conformance.cases_life import TRAINER
from tests.conformance.model import Job, Object, case
from tests.conformance.trial import Trial
from tests.support import kubelet

NATIVE, COSCHEDULING, VOLCANO = (
    "apis/scheduling.k8s.io/v1beta1",
    "apis/scheduling.x-k8s.io/v1alpha1",
    "apis/scheduling.volcano.sh/v1beta1",
)
GATE = "kueue.x-k8s.io/admission"
QUEUE = when.put(
    "localqueues",
    {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": "research"}},
    group="apis/kueue.x-k8s.io/v1beta2",
)
PRIORITY: Object = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "conformance-high"},
    "value": 1000,
}
"""Object of the cluster that the cases need."""
PREFERRED = "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution"
REQUIRED = "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution"


def scheduling(workers: int = 2, restarts: int = 0, **fields: str) -> Job:
    """Return a job with fields of spec.scheduling."""
    return Job(workers=workers, restarts=restarts, spec={"scheduling": fields})


def label(name: str) -> tuple[str, str, str]:
    """Return the path of a label with dots in its name."""
    return ("metadata", "labels", name)


def annotation(name: str) -> tuple[str, str, str]:
    """Return the path of an annotation with dots in its name."""
    return ("metadata", "annotations", name)


async def kueue_manages(trial: Trial) -> None:
    """The webhook of Kueue has seen the pods when they were created."""
    body = {"metadata": {"labels": {"kueue.x-k8s.io/managed": "true"}}}
    for pod in trial.pods.values():
        await trial.api.patch(trial.core("pods", pod["metadata"]["name"]), body)


async def kueue_admits(trial: Trial) -> None:
    """Kueue has found quota for the group."""
    for pod in trial.pods.values():
        await trial.api.patch(trial.core("pods", pod["metadata"]["name"]), {"spec": {"schedulingGates": []}})


CASES = (
    # --- gangs -----------------------------------------------------------------------------------------------
    case(
        "given no gang, then no group object is made and the default scheduler gets the pods",
        Job(),
        then.runs(),
        then.pod(0, {"spec.schedulerName": "default-scheduler", "spec.schedulingGroup": None}),
        then.lists("podgroups", group=NATIVE),
        needs="own fields,native gangs",
    ),
    case(
        "given a native gang, then a PodGroup of the attempt needs all pods, and they refer to it",
        scheduling(gang="native"),
        then.finds("podgroups", "job-1", {"spec.schedulingPolicy": {"gang": {"minCount": 2}}}, group=NATIVE),
        then.pod(0, {"spec.schedulingGroup": {"podGroupName": "job-1"}, "spec.schedulerName": "default-scheduler"}),
        needs="own fields,native gangs",
    ),
    case(
        "given a native gang with a priority, then the group and its pods have it",
        scheduling(gang="native", priorityClassName="conformance-high"),
        then.finds("podgroups", "job-1", {"spec.priorityClassName": "conformance-high"}, group=NATIVE),
        then.pod(1, {"spec.priorityClassName": "conformance-high", "spec.priority": 1000}),
        needs="own fields,native gangs",
    ),
    case(
        "given a native gang with a parameter server, then the group has it as a member",
        Job(
            program=False,
            spec={
                **TRAINER,
                "parallelism": {"data": {"mode": "parameterServer"}},
                "scheduling": {"gang": "native"},
            },
        ),
        then.finds("podgroups", "job-1", {"spec.schedulingPolicy": {"gang": {"minCount": 3}}}, group=NATIVE),
        needs="own fields,native gangs",
    ),
    case(
        "given coscheduling, then its PodGroup has all pods as members, and a label refers to it",
        scheduling(gang="coscheduling"),
        then.finds("podgroups", "job-1", {"spec.minMember": 2}, group=COSCHEDULING),
        then.pod(0, {label("scheduling.x-k8s.io/pod-group"): "job-1"}),
        then.pod(0, {"spec.schedulerName": "scheduler-plugins-scheduler"}),
    ),
    case(
        "given coscheduling and a scheduler in the template, then the pods have that one",
        Job(
            spec={
                "scheduling": {"gang": "coscheduling"},
                "workers": {"template": {"spec": {"schedulerName": "mine"}}},
            }
        ),
        then.pod(0, {"spec.schedulerName": "mine", label("scheduling.x-k8s.io/pod-group"): "job-1"}),
    ),
    case(
        "given volcano with a queue, then the PodGroup is in it, an annotation refers to it, and no gate is set",
        scheduling(gang="volcano", queue="research", priorityClassName="conformance-high"),
        then.finds(
            "podgroups",
            "job-1",
            {"spec.minMember": 2, "spec.queue": "research", "spec.priorityClassName": "conformance-high"},
            group=VOLCANO,
        ),
        then.pod(0, {annotation("scheduling.k8s.io/group-name"): "job-1", "spec.schedulerName": "volcano"}),
        then.pod(0, {"spec.schedulingGates": None}),
    ),
    case(
        "given a gang, when the group restarts, then attempt 2 has a group of its own and that of attempt 1 is deleted",
        scheduling(gang="coscheduling", restarts=1),
        then.runs(),
        when.ends(0, code=1),
        then.runs(2),
        then.lists("podgroups", "job-2", group=COSCHEDULING),
    ),
    case(
        "given a gang, when the job is suspended, then it has no group",
        scheduling(gang="coscheduling"),
        then.runs(),
        when.suspend(),
        then.reaches("Suspended"),
        then.lists("podgroups", group=COSCHEDULING),
    ),
    case(
        "given a running job, when its gang is changed, then that is refused",
        scheduling(gang="coscheduling"),
        then.runs(),
        then.refuses_edit("may change while the job is active", scheduling={"gang": "none"}),
    ),
    # --- priorities ------------------------------------------------------------------------------------------
    case(
        "given a priority without a gang, then the pods have it",
        scheduling(priorityClassName="conformance-high"),
        then.pod(0, {"spec.priorityClassName": "conformance-high", "spec.priority": 1000}),
    ),
    case(
        "given a priority class that does not exist, then the job names it and waits",
        scheduling(priorityClassName="missing"),
        then.says("Running", "False", "PodsRefused", "missing"),
        then.stays(then.pods_are(), 0.3),
    ),
    # --- queues ----------------------------------------------------------------------------------------------
    case(
        "given a queue that does not exist, then the job says so, and has pods once the queue is created",
        scheduling(queue="research"),
        then.says("Running", "False", "QueueUnavailable", "has no LocalQueue research; create it"),
        then.stays(then.pods_are(), 0.3),
        QUEUE,
        then.has_pods((1, 0), (1, 1)),
    ),
    case(
        "given a queue, then the pods are one group of it, and cannot be scheduled before they are admitted",
        scheduling(queue="research"),
        then.has_pods((1, 0), (1, 1)),
        then.pod(0, {"spec.schedulingGates": [{"name": GATE}], label("kueue.x-k8s.io/queue-name"): "research"}),
        then.pod(0, {label("kueue.x-k8s.io/pod-group-name"): "job-1"}),
        then.pod(1, {annotation("kueue.x-k8s.io/pod-group-total-count"): "2"}),
        then.says("Running", "False", "QueueUnavailable", "install Kueue with its integration pod"),
        given=(QUEUE,),
    ),
    case(
        "given a queue that manages the pods, then the job is Queued until it is admitted, and then runs",
        scheduling(queue="research"),
        then.has_pods((1, 0), (1, 1)),
        kueue_manages,
        then.says("Running", "False", "Queued", "waits in the queue research"),
        kueue_admits,
        then.runs(),
        given=(QUEUE,),
    ),
    case(
        "given a queue and schedulingTimeoutSeconds, when the group waits longer for quota, then it keeps its place",
        Job(spec={"scheduling": {"queue": "research"}, "schedulingTimeoutSeconds": 1}),
        then.has_pods((1, 0), (1, 1)),
        kueue_manages,
        then.stays(then.kept(0, 1), 2.5),
        given=(QUEUE,),
    ),
    case(
        "given a queue and a topology, then Kueue gets the topology request of the group",
        scheduling(queue="research", topologyKey="rack"),
        then.pod(1, {annotation("kueue.x-k8s.io/podset-preferred-topology"): "rack"}),
        given=(QUEUE,),
    ),
    case(
        "given a queue for an elastic job, then it is refused with the fix",
        None,
        then.refuses(
            Job(
                program=False,
                spec={
                    **TRAINER,
                    "scheduling": {"queue": "research"},
                    "elastic": {"minReplicas": 1},
                    "checkpoint": {"claim": {"size": "1Gi"}},
                },
            ),
            "spec.scheduling.queue: a queue gives quota to a group of one size",
            "remove one of them",
        ),
    ),
    # --- places ----------------------------------------------------------------------------------------------
    case(
        "given topologyKey, then the pods prefer nodes near their group, and require none",
        scheduling(topologyKey="rack"),
        then.pod(1, {f"{PREFERRED}.0.podAffinityTerm.topologyKey": "rack", f"{PREFERRED}.0.weight": 10}),
        then.pod(1, {REQUIRED: None}),
    ),
    case(
        "given topologyKey and tensor parallelism, then workers of a tensor group are a domain of neighbours",
        Job(
            workers=4,
            program=False,
            spec={**TRAINER, "parallelism": {"tensor": 2}, "scheduling": {"topologyKey": "rack"}},
        ),
        then.pod(0, {label("trainyard.dev/domain"): "0", f"{PREFERRED}.0.weight": 100}),
        then.pod(1, {label("trainyard.dev/domain"): "0"}),
        then.pod(2, {label("trainyard.dev/domain"): "1"}),
        then.pod(3, {label("trainyard.dev/domain"): "1"}),
    ),
    # --- the scheduling timeout ------------------------------------------------------------------------------
    case(
        "given schedulingTimeoutSeconds, when a pod finds no node, then the group gives its node back and tries again",
        Job(spec={"schedulingTimeoutSeconds": 6}),
        then.has_pods((1, 0), (1, 1)),
        when.start(0),
        when.is_unschedulable(1, words="no GPU is free"),
        then.has_said(
            "Running",
            "False",
            "SchedulingTimeout",
            "1 of 2 pods were not scheduled within 6 s (spec.schedulingTimeoutSeconds)",
            "no GPU is free",
        ),
        when.go((1, 0)),
        then.has_pods(),
        when.let_all_start(),
        then.runs(2),
        then.status({"restarts": 0, "restartsCounted": 0, "disruptions": 0, "scheduling": None}),
        then.tells("Accepted", "Unschedulable", "SchedulingTimeout", "AllWorkersRunning"),
        starts=False,
        terminates=False,
    ),
    case(
        "given schedulingTimeoutSeconds, when pods have nodes and do not start, then they keep them",
        Job(),
        then.has_pods((1, 0), (1, 1)),
        when.becomes(0, 1, status=kubelet.scheduled),
        when.edit(schedulingTimeoutSeconds=1),
        then.stays(then.kept(0, 1), 2.5),
        starts=False,
    ),
    case(
        "given no schedulingTimeoutSeconds, when it is added to a group that waits, then it holds",
        Job(),
        then.has_pods((1, 0), (1, 1)),
        when.start(0),
        when.is_unschedulable(1),
        then.says("Running", "False", "Unschedulable"),
        when.edit(schedulingTimeoutSeconds=1),
        then.has_said("Running", "False", "SchedulingTimeout"),
        then.has_pods(),
        starts=False,
    ),
)
