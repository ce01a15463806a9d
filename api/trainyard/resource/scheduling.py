"""`status.scheduling`: a group that waits for nodes, with spec.schedulingTimeoutSeconds."""

from trainyard.base import ApiModel, Count, Timestamp


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
