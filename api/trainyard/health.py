"""`spec.health`: when a run that does not get on is ended, so that it is restarted."""

from typing import Annotated

from pydantic import Field

from trainyard.base import ApiModel

DEFAULT_STARTUP_TIMEOUT = 1800
_LONGEST = 86_400


class Health(ApiModel):
    """When a run that does not get on is ended, so that it is restarted."""

    startup_timeout_seconds: Annotated[int, Field(ge=1, le=_LONGEST)] = DEFAULT_STARTUP_TIMEOUT
    """Seconds from the moment when all workers run until the first step of the attempt must be done; then the group
    restarts, which counts against restartPolicy.limit. It must have time for loading the data, compiling the model and
    reading a checkpoint. Judged by rank 0's metrics page alone: while it cannot be read, nothing is done."""


def startup_timeout(health: Health | None) -> int:
    """Seconds; the default for a job without `spec.health`."""
    return health.startup_timeout_seconds if health else DEFAULT_STARTUP_TIMEOUT
