"""Limits of the life of a job, and jobs of another controller."""

from tests.conformance import then, when
from tests.conformance.model import Job, case

OTHER = "example.com/other"

CASES = (
    # --- limits ----------------------------------------------------------------------------------------------
    case(
        "given activeDeadlineSeconds, when all workers have run that long, then the job fails and its pods are deleted",
        Job(spec={"activeDeadlineSeconds": 2}),
        then.says("Failed", "True", "DeadlineExceeded", "run for 2 s in total (spec.activeDeadlineSeconds)"),
        then.expect(then.kept()),
        then.status({"runningSeconds": lambda seconds: 2 <= seconds <= 4}),
        node=True,
    ),
    case(
        "given activeDeadlineSeconds, when pods wait for a node for longer, then that time does not count",
        Job(spec={"activeDeadlineSeconds": 5}),
        then.has_pods((1, 0), (1, 1)),
        then.stays(then.kept(0, 1), 6),
        when.let_all_start(),
        then.runs(),
        starts=False,
    ),
    case(
        "given activeDeadlineSeconds, when the job is suspended meanwhile, then that time does not count",
        Job(spec={"activeDeadlineSeconds": 8}),
        then.runs(),
        when.suspend(),
        then.reaches("Suspended"),
        then.stays(then.pods_are(), 8.5),
        when.suspend(False),
        then.runs(2),
    ),
    case(
        "given a running job, when activeDeadlineSeconds is set, then it holds for the time that has passed already",
        Job(),
        then.runs(),
        then.stays(then.kept(0, 1), 1.5),
        when.edit(activeDeadlineSeconds=1),
        then.says("Failed", "True", "DeadlineExceeded"),
    ),
    case(
        "given ttlSecondsAfterFinished, when the job has ended, then it is deleted",
        Job(ttl=1),
        then.runs(),
        when.ends(0, 1),
        then.is_gone(),
        needs="ttl",
        node=True,
    ),
    case(
        "given ttlSecondsAfterFinished, when the job runs for longer, then it is not deleted",
        Job(ttl=0),
        then.runs(),
        then.stays(then.kept(0, 1), 1.5),
        needs="ttl",
    ),
    case(
        "given a finished job, when ttlSecondsAfterFinished is set, then it is deleted",
        Job(),
        then.runs(),
        when.ends(0, 1),
        then.reaches("Succeeded"),
        when.edit(ttlSecondsAfterFinished=1),
        then.is_gone(),
    ),
    case(
        "given ttlSecondsAfterFinished, when the job fails, then it is deleted, too",
        Job(ttl=1),
        then.runs(),
        when.ends(1, code=1),
        then.is_gone(),
        needs="ttl",
    ),
    # --- another controller ----------------------------------------------------------------------------------
    case(
        "given another controller in managedBy, when the job is created, then it gets no objects, status and events",
        Job(manager=OTHER),
        then.foreign_job_is_left_alone(),
        needs="managed by",
        node=True,
    ),
    case(
        "given the operator's own name in managedBy, then the job runs",
        Job(manager="trainyard.dev/operator"),
        then.runs(),
    ),
    case(
        "given another controller in managedBy, when it is changed or removed, then that is refused with the fix",
        Job(manager=OTHER),
        then.refuses_edit("spec.managedBy: cannot be changed; delete the job", managedBy="trainyard.dev/operator"),
        then.refuses_edit("spec.managedBy: cannot be changed", managedBy=None),
        then.refuses(Job(name="invalid", manager="no-domain"), "spec.managedBy"),
    ),
    case(
        "given a suspended job, when managedBy is added, then that is refused, too",
        Job(suspended=True),
        then.reaches("Suspended"),
        then.refuses_edit("spec.managedBy: cannot be changed", managedBy=OTHER),
    ),
)
