"""Exit codes of the commands that see a job to its end."""

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

_BAD_INPUT = (Reason.INVALID_CONFIG, Reason.INVALID_SPEC)


def exit_code(job: TrainingJob) -> int:
    """0 the job succeeded; 2 it can never work; 1 it failed, or has not ended."""
    if job.status.is_true(ConditionType.SUCCEEDED):
        return 0
    failed = job.status.condition(ConditionType.FAILED)
    return EXIT_BAD_INPUT if failed and failed.reason in _BAD_INPUT else EXIT_FAILED
