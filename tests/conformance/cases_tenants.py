"""Namespaces and tenants: quotas, LimitRanges, Pod Security, a namespace that is deleted, and elastic groups."""

from tests.conformance import then, when
from tests.conformance.cases_life import TRAINER
from tests.conformance.model import Case, Job, Object, Step, case

FEW: Object = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "few"},
    "spec": {"hard": {"pods": "1"}},
}
USED: Object = {"hard": {"pods": "1"}, "used": {"pods": "0"}}
LEVELS = ("privileged", "baseline", "restricted")
PROGRAMS = {
    "the built-in trainer": (Job(program=False, spec=TRAINER), "restricted"),
    "a program of one's own": (Job(), "baseline"),
    "hostNetwork": (Job(spec={"workers": {"template": {"spec": {"hostNetwork": True}}}}), "privileged"),
}
"""Job, and the strictest level of Pod Security that admits it."""


def limit_range(**limits: Object) -> Step:
    """The namespace has a LimitRange for containers."""
    limit = {"type": "Container", **limits}
    metadata = {"name": "defaults"}
    body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": {"limits": [limit]}}
    return when.put("limitranges", body)


def security(level: str, program: str) -> Case:
    """Return the case of a job under a level of Pod Security."""
    job, needs = PROGRAMS[program]
    if LEVELS.index(level) <= LEVELS.index(needs):
        return case(
            f"given Pod Security {level}, then {program} runs",
            job,
            then.runs(),
            given=(when.enforce_pod_security(level),),
        )
    return case(
        f"given Pod Security {level}, then {program} is refused and the level is named",
        job,
        then.says("Running", "False", "PodsRefused", f'violates PodSecurity "{level}:latest"'),
        given=(when.enforce_pod_security(level),),
    )


def elastic(least: int = 1, seconds: int = 1, **fields: int) -> Job:
    """Return a job of one or two workers, whose batch suits one to four."""
    trainer = {**TRAINER["trainer"], "batch": {"global": 12}}
    limits = {"minReplicas": least, "resizeAfterSeconds": seconds, **fields}
    return Job(program=False, spec={"trainer": trainer, "checkpoint": {"claim": {"size": "1Gi"}}, "elastic": limits})


SHRUNK = (
    then.has_pods((1, 0), (1, 1)),
    when.start(0),
    when.is_unschedulable(1),
    then.says("Degraded", "True", "Resized", "1 of 2 workers"),
    then.has_pods((2, 0)),
    when.start(0),
    then.reaches("Running"),
)
"""Steps after which one of two workers runs as attempt 2."""

CASES = (
    # --- quotas and limits -----------------------------------------------------------------------------------
    case(
        "given a quota for half of the group, then the job names it, and runs once it is raised",
        Job(),
        then.says("Running", "False", "PodsRefused", "exceeded quota: few"),
        then.tells("Accepted", "PodsRefused"),
        when.drop("resourcequotas", "few"),
        then.runs(),
        then.status({"attempt": 1, "restarts": 0}),
        given=(when.put("resourcequotas", FEW, status=USED),),
    ),
    case(
        "given a quota for half of the group, when the job is deleted meanwhile, then no pod is created again",
        Job(),
        then.says("Running", "False", "PodsRefused", "exceeded quota: few"),
        when.delete_job(),
        then.is_gone(),
        then.stays(then.kept(0), 1),
        when.remove_pods(),
        then.has_pods(),
        when.drop("resourcequotas", "few"),
        then.stays(then.pods_are(), 1),
        given=(when.put("resourcequotas", FEW, status=USED),),
    ),
    case(
        "given a default limit into which the trainer does not fit, then the job fails and names the LimitRange",
        Job(program=False, spec=TRAINER),
        then.says("Failed", "True", "InvalidSpec", "a LimitRange of namespace", "limits a worker to 300Mi of memory"),
        then.says("Failed", "True", "InvalidSpec", "since the job sets no limit: spec.workers.resources.limits."),
        then.says("Failed", "True", "InvalidSpec", "limits.memory: a worker has 300Mi but needs about "),
        then.stays(then.pods_are(), 0.3),
        given=(limit_range(default={"memory": "300Mi"}, defaultRequest={"memory": "100Mi"}),),
    ),
    case(
        "given a default limit and a limit of the job, then the trainer runs with that of the job",
        Job(program=False, spec={**TRAINER, "workers": {"resources": {"limits": {"memory": "8Gi"}}}}),
        then.runs(),
        then.pod(0, {"spec.containers.0.resources.limits.memory": "8Gi"}),
        given=(limit_range(default={"memory": "300Mi"}, defaultRequest={"memory": "100Mi"}),),
    ),
    case(
        "given a default limit, then a program of one's own gets it, since nothing is known about it",
        Job(),
        then.runs(),
        then.pod(0, {"spec.containers.0.resources.limits.memory": "300Mi"}),
        given=(limit_range(default={"memory": "300Mi"}, defaultRequest={"memory": "100Mi"}),),
    ),
    case(
        "given a limit above that of the namespace, then the job names both, and runs once it is raised",
        Job(spec={"workers": {"resources": {"limits": {"memory": "8Gi"}}}}),
        then.says("Running", "False", "PodsRefused", "maximum memory usage per Container is 1Gi, but limit is 8Gi"),
        when.drop("limitranges", "defaults"),
        then.runs(),
        given=(limit_range(max={"memory": "1Gi"}),),
    ),
    # --- Pod Security ----------------------------------------------------------------------------------------
    *(security(level, program) for level in LEVELS for program in PROGRAMS),
    # --- a namespace that ends -------------------------------------------------------------------------------
    case(
        "given a running job, when its namespace is deleted under it, then no pod is created again",
        Job(restarts=3),
        then.runs(),
        when.delete_namespace(),
        when.remove_pods(),
        then.reaches("Restarting"),
        then.has_pods(),
        then.stays(then.pods_are(), 1),
    ),
    # --- elastic groups --------------------------------------------------------------------------------------
    case(
        "given an elastic job, when one pod finds no node, then the other trains alone and no restart is counted",
        elastic(),
        *SHRUNK,
        then.status({"elastic.replicas": 1, "workers.desired": 1, "restartsCounted": 0, "attempt": 2}),
        then.finds("configmaps", "job", {("data", "config.json"): then.has('"worldSize": 1,')}),
        starts=False,
    ),
    case(
        "given a reduced group under the restricted level, when a placeholder finds a node, then the group grows again",
        elastic(),
        *SHRUNK,
        then.finds("pods", "job-2-placeholder-0", {}),
        when.let_all_start(),
        then.runs(3),
        then.says("Degraded", "False", "Resized"),
        then.status({"attempt": 3, "restartsCounted": 0, "workers.desired": 2}),
        then.finds("configmaps", "job", {("data", "config.json"): then.has('"worldSize": 2,')}),
        given=(when.enforce_pod_security("restricted"),),
        starts=False,
    ),
    case(
        "given a reduced group with a placeholder, then the selector of the scale subresource finds the workers only",
        elastic(),
        *SHRUNK,
        then.finds("pods", "job-2-placeholder-0", {}),
        then.scale_is({"spec.replicas": 2, "status.replicas": 1}, "job-2-0"),
        starts=False,
    ),
    case(
        "given an elastic job, when it is scaled beyond its limits, then that is refused and the limit is named",
        elastic(least=2, maxReplicas=3, seconds=60),
        then.runs(),
        then.is_refused(when.scale(1), "must be at least spec.elastic.minReplicas"),
        then.is_refused(when.scale(4), "at most spec.elastic.maxReplicas"),
    ),
    case(
        "given an elastic job that runs, when it is scaled up, then it continues until there is capacity",
        elastic(maxReplicas=3, seconds=60),
        then.runs(),
        when.scale(3),
        then.says("Degraded", "True", "Resized", "2 of 3 workers"),
        then.stays(then.kept(0, 1), 0.5),
        then.reaches("Running"),
    ),
    case(
        "given an elastic job that runs, when it is scaled down, then it restarts at that size at once",
        elastic(seconds=60),
        then.runs(),
        when.scale(1),
        then.runs(2, workers=1),
        then.status({"restartsCounted": 0}),
    ),
    case(
        "given a scheduling timeout below the time after which an elastic job shrinks, then it is refused",
        None,
        then.refuses(
            Job(program=False, spec={**elastic(seconds=60).spec, "schedulingTimeoutSeconds": 30}),
            "spec.schedulingTimeoutSeconds: must be more than spec.elastic.resizeAfterSeconds",
        ),
    ),
)
