"""Evaluation on samples that the model is not trained on."""

from collections.abc import Callable, Sequence

from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.evaluation_sets import EvaluationSet
from trainyard_trainer.data.samples import IGNORED
from trainyard_trainer.evaluation.scores import Scores
from trainyard_trainer.parallel.passes import ForwardBackward
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
    sets: Sequence[EvaluationSet] | None = None,
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
        sets: samples to evaluate; None: those of `Batches.evaluated`.
        report: receives the number of positions of each batch that is done.
    """
    sets = batches.evaluated if sets is None else sets
    scores = Scores([each.name for each in sets], classes, plugin or Plugin(), world.device)
    heartbeat.beat(Phase.EVALUATION)
    for index, evaluated in enumerate(sets):
        for batch in batches.eval_batches(evaluated):
            loss, predictions = passes.evaluate(batch)
            if report is not None:
                report(len(batch.targets))
            if predictions is not None and counts:
                scores.add(index, loss, predictions, batch.targets, batch.targets != IGNORED)
    scores.sum(world)
    return scores
