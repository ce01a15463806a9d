"""Changes of a status that decide nothing: how many pods run, and the words about it.

While the pods of a group start one after the other, each of them changes such figures. They are written together, or
with the decision that ends the wait, so that a group of thousands costs a few writes, and a small one none.
"""

from datetime import timedelta

from trainyard.resource.status import TrainingJobStatus
from trainyard_operator.lifecycle.progress_writes import hold_back_progress

QUIET_INTERVAL = timedelta(seconds=2)
"""How long figures and messages may differ from the stored status, on a cluster."""


def is_quiet(before: TrainingJobStatus, after: TrainingJobStatus, progress_interval: timedelta) -> bool:
    """Return whether two statuses differ in counts of workers, messages of conditions and unimportant progress only.

    Args:
        before: the stored status.
        after: the status to write.
        progress_interval: longest time between two writes of progress that changes; 0: every reading matters.
    """
    messages = {condition.type: condition.message for condition in before.conditions}
    conditions = tuple(c.replace(message=messages.get(c.type, c.message)) for c in after.conditions)
    rest = after.replace(workers=before.workers, conditions=conditions)
    # Time passes with every change; what it is spent on is news.
    if before.goodput is not None and after.goodput is not None and before.goodput.activity == after.goodput.activity:
        rest = rest.replace(goodput=before.goodput) if rest.progress == before.progress else rest
    return rest == before or hold_back_progress(before, rest, progress_interval) == before
