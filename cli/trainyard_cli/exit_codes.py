"""Exit codes of the commands."""

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NO_CLUSTER, EXIT_INTERRUPTED = 1, 2, 3, 130

_BAD_INPUT = (Reason.INVALID_CONFIG, Reason.INVALID_SPEC)


def exit_code(job: TrainingJob) -> int:
    """Return 0 for a job that succeeded, 2 for one whose configuration is invalid, and 1 for any other."""
    if job.status.is_true(ConditionType.SUCCEEDED):
        return 0
    failed = job.status.condition(ConditionType.FAILED)
    return EXIT_BAD_INPUT if failed and failed.reason in _BAD_INPUT else EXIT_FAILED
