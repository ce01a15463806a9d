"""The life of a job: children, start, end, suspension, deletion, and names that are taken."""

from tests.conformance import then, when
from tests.conformance.model import Job, case
from tests.conformance.trial import Trial

TRAINER = {
    "trainer": {
        "model": {"name": "llama", "preset": "nano"},
        "data": {"source": "text", "builtin": "python-stdlib"},
        "batch": {"global": 16},
        "stop": {"steps": 100},
    }
}
"""Fields of a small job of the built-in trainer."""
TRAINED = '{"rank": 0, "progress": {"step": 100, "totalSteps": 100, "loss": 1.5}}'
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "job"}, "spec": {"ports": [{"port": 80}]}}
ACTIVE = "only suspend, activeDeadlineSeconds, schedulingTimeoutSeconds"


def owner_is_the_job(trial: Trial) -> None:
    uid = trial.job["metadata"]["uid"]
    owners = {reference["uid"] for pod in trial.pods.values() for reference in pod["metadata"]["ownerReferences"]}
    assert owners == {uid}, f"owners {owners}, not {uid}"


def times_are_ordered(trial: Trial) -> bool:
    status = trial.job["status"]
    return bool(status["startTime"] <= status["completionTime"])


CASES = (
    # --- children and ends -----------------------------------------------------------------------------------
    case(
        "given 2 workers, when all of them run, then the job runs",
        Job(),
        then.runs(),
        needs="any",
    ),
    case(
        "given a job, when it is created, then each pod is owned by it, so that garbage collection finds them",
        Job(),
        then.has_pods((1, 0), (1, 1)),
        then.belongs_to_the_job("pods", "job-1-0"),
        then.belongs_to_the_job("pods", "job-1-1"),
    ),
    case(
        "given a job, when it is created, then a headless service of its name publishes addresses before readiness",
        Job(),
        then.finds("services", "job", {"spec.clusterIP": "None", "spec.publishNotReadyAddresses": True}),
        needs="service",
        node=True,
    ),
    case(
        "given a job, when it is created, then its service is owned by it and selects its pods only",
        Job(),
        then.belongs_to_the_job("services", "job"),
        then.finds("services", "job", {"spec.selector": {"trainyard.dev/job-name": "job"}}),
    ),
    case(
        "given the built-in trainer, when it is created, then a ConfigMap owned by it has the resolved configuration",
        Job(program=False, spec=TRAINER),
        then.belongs_to_the_job("configmaps", "job"),
        then.finds("configmaps", "job", {("data", "config.json"): then.has('"worldSize": 2')}),
    ),
    case(
        "given pods without a node, then the job is Pending in attempt 1 with what is desired",
        Job(),
        then.reaches("Pending"),
        then.status({"attempt": 1, "workers.desired": 2, "workers.running": 0, "observedGeneration": 1}),
        starts=False,
    ),
    case(
        "given all workers run, then the counts of the status say so",
        Job(),
        then.runs(),
        then.status({"workers.desired": 2, "workers.running": 2, "workers.ready": 2}),
    ),
    case(
        "given 2 workers, when both end with 0, then the job has succeeded and keeps its pods for their logs",
        Job(),
        then.runs(),
        when.ends(0, 1),
        then.reaches("Succeeded"),
        then.stays(then.kept(0, 1)),
        then.status({"workers.succeeded": 2, "completionTime": bool, "startTime": bool}),
        then.expect(lambda trial: then.matches({"ordered": times_are_ordered(trial)}, {"ordered": True})),
        node=True,
    ),
    case(
        "given 2 workers, when only worker 0 ends with 0, then the job still runs, and succeeds with the last",
        Job(),
        then.runs(),
        when.ends(0),
        then.stays(lambda trial: then.matches({"state": trial.mapping.state(trial.job)}, {"state": "Running"})),
        when.ends(1),
        then.reaches("Succeeded"),
        needs="any",
        node=True,
    ),
    case(
        "given a job that succeeds, then its events are Accepted, AllWorkersRunning, AllWorkersSucceeded",
        Job(),
        then.runs(),
        when.ends(0, 1),
        then.reaches("Succeeded"),
        then.tells("Accepted", "AllWorkersRunning", "AllWorkersSucceeded"),
        node=True,
    ),
    case(
        "given the built-in trainer without a step yet, then it runs without progressing",
        Job(program=False, spec=TRAINER),
        then.says("Progressing", "False", "NoStepYet"),
    ),
    case(
        "given the built-in trainer, when rank 0 ends with its last figures, then the status has them",
        Job(program=False, spec=TRAINER),
        then.runs(),
        when.ends(0, message=TRAINED),
        when.ends(1),
        then.reaches("Succeeded"),
        then.status({"progress.step": 100, "progress.loss": 1.5}),
        then.stays(then.kept(0, 1)),
    ),
    case(
        "given a worker that has succeeded, when its pod is removed, then the success is remembered",
        Job(),
        then.runs(),
        when.ends(0),
        then.status({"succeededIndexes": "0"}),
        when.delete_pod(0),
        then.has_pods((1, 1)),
        when.ends(1),
        then.reaches("Succeeded"),
        then.status({"attempt": 1, "restarts": 0, "workers.succeeded": 2}),
        node=True,
    ),
    # --- suspension ------------------------------------------------------------------------------------------
    case(
        "given a suspended job, when it is created, then it has no pods",
        Job(suspended=True),
        then.reaches("Suspended"),
        then.stays(then.pods_are()),
        needs="suspend",
        node=True,
    ),
    case(
        "given a running job, when it is suspended, then its pods are deleted before it is Suspended",
        Job(),
        then.runs(),
        when.suspend(),
        then.reaches("Suspended"),
        then.pods_are_now(),
        needs="suspend",
        node=True,
    ),
    case(
        "given a suspended job, when it is resumed, then a new attempt runs and no restart is counted",
        Job(),
        then.runs(),
        when.suspend(),
        then.reaches("Suspended"),
        when.suspend(False),
        then.runs(2),
        then.status({"attempt": 2, "restarts": 0}),
        node=True,
    ),
    case(
        "given pods that take long to end, when the job is suspended, then it is Suspending until the last is gone",
        Job(),
        then.runs(),
        when.suspend(),
        then.reaches("Suspending"),
        then.status({"workers.running": 2}),
        when.go((1, 0)),
        then.has_pods((1, 1)),
        then.reaches("Suspending"),
        when.go((1, 1)),
        then.reaches("Suspended"),
        terminates=False,
    ),
    case(
        "given a suspended job, when its image is changed and it is resumed, then the pods have the new image",
        Job(),
        then.runs(),
        when.suspend(),
        then.reaches("Suspended"),
        when.edit(image="example.com/other"),
        when.suspend(False),
        then.runs(2),
        then.pod(0, {"spec.containers.0.image": "example.com/other"}),
        then.pod(1, {"spec.containers.0.image": "example.com/other"}),
    ),
    case(
        "given a running job, when its image is changed, then the change is refused with the way to make it",
        Job(),
        then.runs(),
        then.refuses_edit(ACTIVE, "set suspend: true, wait for the condition Suspended", image="example.com/other"),
        then.refuses_edit(ACTIVE, suspend=True, image="example.com/other"),
        node=True,
    ),
    case(
        "given a job whose pods are ending, when its image is changed, then the change is still refused",
        Job(),
        then.runs(),
        when.suspend(),
        then.reaches("Suspending"),
        then.refuses_edit(ACTIVE, image="example.com/other"),
        when.go((1, 0), (1, 1)),
        then.reaches("Suspended"),
        when.edit(image="example.com/other"),
        terminates=False,
    ),
    # --- deletion and names ----------------------------------------------------------------------------------
    case(
        "given a running job, when it is deleted with its pods, then nothing is created for it again",
        Job(),
        then.runs(),
        when.delete_job(),
        then.is_gone(),
        when.remove_pods(),
        when.create(Job(name="marker", workers=1)),
        then.finds("pods", "marker-1-0", {"status.phase": "Running"}),
        then.has_pods(),
        then.stays(then.pods_are(), 0.5),
    ),
    case(
        "given a deleted job, when one of the same name is created, then it begins with attempt 1 and pods of its own",
        Job(),
        then.runs(),
        when.delete_job(),
        then.is_gone(),
        when.create(Job()),
        when.remove_pods(),
        when.drop("services", "job"),
        then.runs(),
        then.expect(owner_is_the_job),
        then.status({"attempt": 1}),
    ),
    case(
        "given a Service of another owner with the name of the job, then the job names it and waits until it is gone",
        Job(),
        then.says("Running", "False", "NameTaken", "Service job exists already and is not this job's; delete it, or "),
        then.says("Running", "False", "NameTaken", "give the job another name"),
        then.tells("Accepted", "NameTaken"),
        then.stays(then.pods_are(), 0.5),
        when.drop("services", "job"),
        then.runs(),
        given=(when.put("services", SERVICE),),
    ),
)
