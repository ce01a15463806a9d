"""`spec.elastic` and `status.elastic`: with how many workers a job trains when there is no room for all of them."""

from typing import Annotated

from pydantic import Field

from trainyard.base import ApiModel, Count, Rule, Timestamp
from trainyard.resource.cel import Layout


class Elastic(ApiModel):
    """How small the group may become while there is no room for all workers. The global batch, and so the course of
    the training, stays as it is: fewer ranks make more micro-batches each.
    """

    min_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """Fewest workers to train with; at most workers.replicas. Sizes in between are used where the layout and the batch
    are possible with them."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Most workers that workers.replicas may ask for: a limit for what uses the scale subresource. None if absent."""
    resize_after_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    """Seconds that pods may find no room until the group is restarted with fewer workers, and between two looks for
    room for more."""


class ElasticStatus(ApiModel):
    """How a group that may shrink stands."""

    replicas: Count | None = None
    """Workers that the current attempt was made for, where these are fewer than workers.replicas; absent: all."""
    unschedulable_since: Timestamp | None = None
    """Since when pods of the current attempt find no room."""
    last_probe_time: Timestamp | None = None
    """When room for the workers that are missing was last looked for."""


ELASTIC_RULES = (
    Rule(
        "!has(self.elastic) || (has(self.trainer) && has(self.checkpoint))",
        "spec.elastic: needs spec.trainer and spec.checkpoint, since each new size goes on from a checkpoint; "
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
        f"!has(self.elastic) || ({Layout('self.elastic.minReplicas').all_fits})",
        "spec.elastic.minReplicas: the layout must be possible with that many workers, too: tensor x context x "
        "pipeline.stages must divide minReplicas x procsPerWorker, batch.global must be a multiple of the "
        "data-parallel ranks (with batch.micro or a pipeline: of their micro-batches), and expert and data.shard must "
        "divide them; choose another minReplicas, or change the batch or spec.parallelism",
    ),
)
