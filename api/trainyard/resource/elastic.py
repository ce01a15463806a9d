"""`spec.elastic` and `status.elastic`: training with fewer workers while the cluster lacks capacity for all of them."""

from typing import Annotated

from pydantic import Field

from trainyard.base import ApiModel, Count, Rule, Timestamp
from trainyard.resource.cel import Layout


class Elastic(ApiModel):
    """How far the group may shrink while the cluster lacks capacity for all workers. The global batch, and with it the
    result of the training, stays the same: fewer ranks process more micro-batches each. Needs trainer and checkpoint.
    """

    min_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """Smallest number of workers to train with; at most workers.replicas. A size in between is used if parallelism and
    batch are possible with it."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Largest value that workers.replicas may be set to, as a limit for autoscalers and other users of the scale
    subresource. No limit if absent."""
    resize_after_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    """Time in seconds that pods may be unschedulable before the group restarts with fewer workers; also the time
    between two searches for capacity for more workers. Such restarts do not count against restartPolicy.maxRestarts.
    Defaults to 300."""


class ElasticStatus(ApiModel):
    """Observed size of a group with spec.elastic."""

    replicas: Count | None = None
    """Number of workers of the current attempt, if it is smaller than workers.replicas; absent: workers.replicas."""
    unschedulable_since: Timestamp | None = None
    """Time since which pods of the current attempt have been unschedulable; absent: all are scheduled."""
    last_probe_time: Timestamp | None = None
    """Time of the last search for capacity for the missing workers."""


ELASTIC_RULES = (
    Rule(
        "!has(self.elastic) || (has(self.trainer) && has(self.checkpoint))",
        "spec.elastic: needs spec.trainer and spec.checkpoint, since each new size resumes from a checkpoint; "
        "add both, or remove it",
    ),
    Rule(
        "!has(self.elastic) || self.workers.replicas >= self.elastic.minReplicas",
        "spec.workers.replicas: must be at least spec.elastic.minReplicas; raise it, or lower minReplicas",
    ),
    Rule(
        "!has(self.elastic) || !has(self.elastic.maxReplicas) || self.workers.replicas <= self.elastic.maxReplicas",
        "spec.workers.replicas: must be at most spec.elastic.maxReplicas; lower it, or raise maxReplicas",
    ),
    Rule(
        "!has(self.elastic) || !has(self.schedulingTimeoutSeconds) ||"
        " self.schedulingTimeoutSeconds > self.elastic.resizeAfterSeconds",
        "spec.schedulingTimeoutSeconds: must be more than spec.elastic.resizeAfterSeconds, so that the group tries "
        "with fewer workers first; raise it, or lower resizeAfterSeconds",
    ),
    Rule(
        f"!has(self.elastic) || ({Layout('self.elastic.minReplicas').all_fits})",
        "spec.elastic.minReplicas: the layout must be possible with that many workers, too: tensor x context x "
        "pipeline.stages must divide minReplicas x procsPerWorker, batch.global must be a multiple of the "
        "data-parallel ranks (with batch.micro or a pipeline: of their micro-batches), and expert and data.shard must "
        "divide them; choose another minReplicas, or change the batch or spec.parallelism",
    ),
)
