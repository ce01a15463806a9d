"""Evaluation on samples that the model is not trained on."""

from collections.abc import Callable, Sequence

from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.samples import IGNORED, Subset
from trainyard_trainer.evaluation.scores import Scores
from trainyard_trainer.parallel.forward_backward import ForwardBackward
from trainyard_trainer.plugin import Plugin
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World


def score(
    passes: ForwardBackward,
    batches: Batches,
    world: World,
    classes: int | None,
    counts: bool,
    plugin: Plugin | None = None,
    subsets: Sequence[Subset] | None = None,
    report: Callable[[int], None] | None = None,
) -> Scores:
    """Return the scores over all evaluation samples, the same on every rank; all ranks must call it.

    Args:
        passes: the forward pass of this layout.
        batches: yields the samples.
        world: the ranks.
        classes: number of classes; None for tokens, which are too many for metrics of each class.
        counts: whether this rank's results are part of the sum; of a tensor-parallel group only one rank's are.
        plugin: metrics and loss of a user's own, if there are any.
        subsets: sources whose held-out samples are evaluated; None: all that have some.
        report: receives the number of positions of each batch that is done.
    """
    subsets = batches.held_out if subsets is None else subsets
    scores = Scores([subset.name for subset in subsets], classes, plugin or Plugin(), world.device)
    heartbeat.beat(Phase.EVALUATION)
    for index, subset in enumerate(subsets):
        for batch in batches.eval_batches(subset):
            loss, predictions = passes.evaluate(batch)
            if report is not None:
                report(len(batch.targets))
            if predictions is not None and counts:
                scores.add(index, loss, predictions, batch.targets, batch.targets != IGNORED)
    scores.sum(world)
    return scores


def everything(subsets: Sequence[Subset]) -> list[Subset]:
    """Return sources with all of their samples held out, those to train on among them."""
    return [
        Subset(s.name, s.weight, range(0), range(s.train.start, s.held_out.stop if len(s.held_out) else s.train.stop))
        for s in subsets
    ]
