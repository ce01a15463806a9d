"""The life of a run, from top to bottom, as one rank sees it."""

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.bad_steps import BadStepHandler
from trainyard_trainer.checkpoint.saver import Saver
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.table import Table
from trainyard_trainer.evaluation.scores import Scores
from trainyard_trainer.evaluation.scoring import score
from trainyard_trainer.metrics.expert_loads import ExpertLoads
from trainyard_trainer.metrics.observer import Observer, Start
from trainyard_trainer.metrics.step_metrics import StepMetrics
from trainyard_trainer.metrics.stopwatch import Stopwatch
from trainyard_trainer.models.lora import is_adapter
from trainyard_trainer.optim.guard import GradientGuard
from trainyard_trainer.optim.learning_rate import learning_rate_factor
from trainyard_trainer.optim.update import LocalUpdate, Update
from trainyard_trainer.parallel.forward_backward import make_forward_backward
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.parallel.parallelize import (
    build_model_parts,
    initialize_parts,
    named_parameters,
    trained_parameters,
)
from trainyard_trainer.parameter_server import RemoteUpdate
from trainyard_trainer.plugin import Plugin
from trainyard_trainer.privacy.budget import Budget
from trainyard_trainer.privacy.gradients import PrivateGradients
from trainyard_trainer.runtime import heartbeat, log
from trainyard_trainer.runtime.device_settings import GarbageCollection
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.runtime.step_agreement import Request, StepAgreement
from trainyard_trainer.runtime.world import World
from trainyard_trainer.step_outcome import StepOutcome
from trainyard_trainer.stopping import check_schedule, progress_unit, total_steps
from trainyard_trainer.train_state import TrainState
from trainyard_trainer.weights.initial import load_initial_weights


class Trainer:
    """A model, its data and its optimizer, and the loop that trains them.

    Losses and gradients are means over all tokens of the global batch, so the same configuration gives the same run
    on any number of ranks and with any micro-batch, up to rounding.
    """

    def __init__(self, config: RunConfig, world: World, samples: Samples, plugin: Plugin | None = None) -> None:
        self.config, self._trainer = config, config.trainer
        self.world = world
        self.batches = Batches(samples, config, world)
        self.mesh = RankMesh(config.mesh, world)
        self.parts = build_model_parts(config, self.mesh, samples, world.device)
        named = trained_parameters(self.parts)
        self._plugin = plugin or Plugin()
        self.passes = make_forward_backward(
            config, self.mesh, self.parts, world.device, self.batches, self._plugin.loss
        )
        self._private: PrivateGradients | None = None
        """The passes of a private run; None for others."""
        if config.trainer.privacy is not None:
            self.passes = self._private = PrivateGradients(config, world, self.parts[0], self.passes)
        policy = config.health.bad_steps
        self.update: Update
        self.agreement = StepAgreement(world)
        guard = None
        if world.servers:
            self.update = RemoteUpdate(named, world, self.agreement)
        else:
            guard = GradientGuard(policy, self.agreement)
            self.update = LocalUpdate(named, config.trainer.optimizer, self.mesh, guard)
        self.state = TrainState(config, named, self.update, self.batches, guard)
        self.observers: list[Observer] = []
        """Observers of this rank; they are called in order."""
        self.final_scores: Scores | None = None
        """Scores of the model as it is at the end; None before, or without an evaluation."""
        self._bad_steps = BadStepHandler(policy, world, self.state, self.update, self.observers)
        self._step_metrics = StepMetrics(
            config,
            world,
            ExpertLoads(config, world, self.parts),
            samples_per_step=self.batches.global_batch,
            counts_loss=self.mesh.counts_loss,
        )
        self._total_steps = 0
        """Optimizer steps of the entire run; known once it is clear where the run begins."""
        self._unread: StepOutcome | None = None
        """The newest step, if the host has not looked at its outcome yet."""
        self._saver: Saver | None = None
        self._source: Location | None = None
        """Checkpoint that this attempt has resumed from."""
        self._stopwatch = Stopwatch()
        self._garbage = GarbageCollection()
        self.interrupted = False
        """Whether training has ended early because a rank was told to stop; everything is saved then."""
        self._classes = samples.class_count if isinstance(samples, Table) else None

    @property
    def step(self) -> int:
        """Optimizer steps done, including those of earlier attempts."""
        return self.state.step

    @property
    def stopped_because(self) -> str:
        """Why the training ends before spec.trainer.stop; empty if it does not."""
        budget = self.state.budget
        return self.state.stopped_because or (None if budget is None else budget.reason_to_stop()) or ""

    def initialize(self) -> None:
        """Give the parameters their initial values, in place of `resume` or where there is no checkpoint.

        Raises:
            ConfigError: the weights of spec.trainer.model.from are damaged, or are those of another model.
        """
        if self.config.trainer.model.from_ is None:
            initialize_parts(self.parts, self.config.trainer.seed)
        else:
            named = named_parameters(self.parts)
            base = [(name, parameter) for name, parameter in named if not is_adapter(name)]
            self.state.parent = load_initial_weights(self.config, base, self.world)
            initialize_parts(self.parts, self.config.trainer.seed, adapters_only=True)

    def resume(self, saver: Saver, budget: Budget | None = None) -> None:
        """Resume from the newest complete checkpoint, whatever layout wrote it, and save checkpoints from now on.

        `budget`: of a private run.

        Raises:
            ConfigError: the checkpoint belongs to another model or optimizer, or to a newer version of the trainer.
        """
        self._saver = saver
        self.state.budget = budget
        self._source = folder = saver.find_checkpoint()
        # Initial values that a checkpoint would replace are not computed. It does not have what is not trained.
        if folder is None or self.config.trainer.model.lora is not None:
            self.initialize()
        if folder is not None:
            self.state.resume(folder, saver.group)
            log.info(f"resumed after step {self.step} from {folder}", resumedStep=self.step)

    def run(self) -> None:
        """Train to the last step.

        The host looks at the outcome of a step while the device works on the next one, so the device never waits for
        the host between reports, evaluations and checkpoints. A bad step changes nothing on the device, so that its
        consequences can be drawn one step later.

        Raises:
            ConfigError: the learning rate would still be rising, or already be falling, when the training ends.
            BadSteps: spec.health.badSteps demands that the attempt fails.
            FinalCheckpointFailed: training has ended or was told to stop, and its state could not be saved.
        """
        self._begin()
        self._garbage.start()
        first_step = self.step + 1
        previous: StepOutcome | None = None
        while self.step < self._total_steps and not self.state.stopped_because and not self.interrupted:
            self._record_timing()
            outcome = self._step()
            agreed = Request.NOTHING if previous is None else previous.values().requested
            previous = None
            if self._rolls_back():
                continue
            self._unread = previous = outcome
            self._step_metrics.after_step()
            self._garbage.after_step(self.step)
            evaluates, reports = self._evaluation_is_due(), self._report_is_due(first_step)
            saves = self._saver is not None and self._saver.is_due(agreed)
            if (evaluates or reports or saves) and self._rolls_back():
                previous = None
                continue
            if evaluates or reports:
                self._report(outcome)
            self._stopwatch.mark("other")
            if evaluates:
                self._evaluate()
            if saves and self._saver is not None:
                self.interrupted = self._saver.after_step(applied=outcome.values().applied)
            self._stopwatch.mark("checkpoint")
        self._end()

    def make_steps(self, last: int) -> Iterator[StepOutcome]:
        """Make steps up to a number, without reports, evaluations, rollbacks and checkpoints, as a replay does."""
        self._count_steps()
        while self.step < last:
            yield self._step()

    def _begin(self) -> None:
        """Determine the number of steps, and announce the run to the observers and the launcher."""
        self._count_steps()
        self._begin_privately()
        timeline = self.state.timeline
        check_schedule(self._trainer.schedule, self._total_steps, timeline.tokens_at(self._total_steps))
        if self.step >= self._total_steps:
            log.info(f"nothing is left to do: spec.trainer.stop was reached before, the run has made {self.step} steps")
        self._announce()
        self.update.begin(self._source)
        heartbeat.start(self.step, self.config.health.hang_timeout_seconds)
        self._stopwatch = Stopwatch()

    def _announce(self) -> None:
        """Announce the run to the observers."""
        timeline = self.state.timeline
        self._step_metrics.begin(self.step)
        start = Start(
            step=self.step,
            samples_consumed=timeline.samples_at(self.step),
            tokens_consumed=timeline.tokens_at(self.step),
            total_steps=self._total_steps,
            batch=self.batches.global_batch,
            samples=self.batches.train_samples,
        )
        for observer in self.observers:
            observer.begin(start)

    def _begin_privately(self) -> None:
        """Open the account of the budget, which may end the run earlier, and set the secret key of a private run.

        Raises:
            ConfigError: the budget is spent, or its ledger does not account for all steps done.
        """
        budget = self.state.budget
        if budget is None or self._private is None:
            return
        self._total_steps = budget.begin(self.step, self._total_steps)
        if self.step < self._total_steps:
            self.batches.draw_privately(budget.key)
            self._private.begin(budget.key, budget.noise_multiplier)

    def _step(self) -> StepOutcome:
        """Make one step; the device may still be computing it when this returns."""
        for observer in self.observers:
            observer.before_step(self.step + 1)
        learning_rate = self._learning_rate(self.step + 1)
        if self.state.budget is not None:
            self.state.budget.charge(self.step + 1)
        loss, data_seconds = self._forward_backward()
        self._stopwatch.mark("passes", waited=data_seconds)
        if self._saver is not None:
            self._saver.before_update()
            self._stopwatch.mark("checkpoint")
        heartbeat.beat(Phase.OPTIMIZER)
        norm, applied = self.update.step(learning_rate)
        self.state.step += 1
        outcome = StepOutcome(self.step, loss, norm, applied, self.agreement.requested, learning_rate)
        self._stopwatch.mark("update")
        heartbeat.beat(Phase.AFTER_STEP, self.step)
        for observer in self.observers:
            observer.after_step(self.step)
        return outcome

    def _forward_backward(self) -> tuple[Tensor, float]:
        """Accumulate the gradient of this rank's share of the global batch; see `ForwardBackward.run`."""
        return self.passes.run(self.batches, self.step)

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        progress_at = progress_unit(self._trainer.stop, self.state.timeline)
        factor = learning_rate_factor(self._trainer.schedule, step, self._total_steps, progress_at)
        return self._trainer.optimizer.learning_rate * factor

    def _rolls_back(self) -> bool:
        """Look at the outcome of the newest step that the host has not looked at; True if the run rolls back then.

        Raises:
            BadSteps: spec.health.badSteps demands that the attempt fails.
        """
        outcome, self._unread = self._unread, None
        if outcome is None:
            return False
        values = outcome.values()
        self._stopwatch.mark("update")
        if values.applied:
            self.state.bad_steps.record_good()
            return False
        if not self._bad_steps.handle(outcome.step, outcome.loss.item(), values.norm, self._saver):
            return False
        self._count_steps()
        self._step_metrics.begin(self.step)
        heartbeat.start(self.step, self.config.health.hang_timeout_seconds)
        self._stopwatch.mark("other")
        return True

    def _report(self, outcome: StepOutcome) -> None:
        """Report the step just done; the host waits for it."""
        report = self._step_metrics.report(
            outcome.step, self._total_steps, outcome.loss, outcome.norm, outcome.learning_rate
        )
        if self.state.budget is not None:
            report = replace(report, epsilon=self.state.budget.epsilon(outcome.step))
        for observer in self.observers:
            observer.reported(report)

    def _count_steps(self) -> None:
        """Determine the number of steps of the run from what it has consumed so far."""
        stop, timeline = self._trainer.stop, self.state.timeline
        self._total_steps = total_steps(stop, self.step, timeline, self.batches.train_samples)

    def _report_is_due(self, first_step: int) -> bool:
        """Return whether to report the current step: the first of an attempt, each logEverySteps-th, and the last."""
        return self.step in (first_step, self._total_steps) or self.step % self._trainer.log_every_steps == 0

    def _evaluation_is_due(self) -> bool:
        """Return whether to evaluate after the current step: each everySteps-th and the last, if there are samples."""
        every = self._trainer.evaluation.every_steps
        due = self.step == self._total_steps or (every is not None and self.step % every == 0)
        return due and self.batches.eval_samples > 0

    def load_weights(self, saver: Saver) -> None:
        """Load the parameters to evaluate, on any layout: of the newest complete checkpoint, else of `model.from`.

        Raises:
            ConfigError: there are no weights, or they belong to another model.
        """
        folder, model = saver.find_checkpoint(), self.config.trainer.model
        # A checkpoint of adapters does not have their base.
        if model.from_ is not None and (folder is None or model.lora is not None):
            self.initialize()
        if folder is not None:
            self.state.load_weights(folder, saver.group)
            log.info(f"evaluates the model of {folder}, after step {self.step}", resumedStep=self.step)
        elif model.from_ is None:
            raise ConfigError(
                "spec.trainer.task: evaluate needs weights, but the volume of spec.checkpoint has no checkpoint of a "
                "job of this name; name the volume and the job, or set spec.trainer.model.from"
            )

    def evaluate_only(self) -> None:
        """Compute the metrics of the model as it is, on the held-out samples, or on all if none are held out."""
        self._total_steps = self.step
        self._announce()
        # Hangs are detected from the first step of an attempt on; an evaluation counts as one.
        heartbeat.start(self.step - 1, self.config.health.hang_timeout_seconds)
        heartbeat.beat(Phase.EVALUATION, self.step)
        self.score()
        self.batches.close()
        self.update.close()

    def score(self) -> dict[str, float]:
        """Score the model, show the metrics to the observers, and return them; all ranks must call it."""
        counts = self.mesh.counts_loss
        scores = score(self.passes, self.batches, self.world, self._classes, counts, self._plugin)
        metrics = scores.metrics()
        rounded = {name: float(f"{value:.6g}") for name, value in metrics.items()}
        for observer in self.observers:
            observer.evaluated(self.step, rounded)
        if not math.isfinite(metrics["loss"]):
            log.logger.warning("the evaluation loss after step %d is %s", self.step, metrics["loss"])
        self.final_scores = scores
        return metrics

    def _evaluate(self) -> None:
        """Evaluate the model, and end the training if it has converged or reached its target."""
        metrics = self.score()
        self.state.stopped_because = self.state.convergence.reason_to_stop(metrics["loss"])
        if self.state.stopped_because:
            log.info(f"stopped after step {self.step}: {self.state.stopped_because}")
        self._step_metrics.skip()
        self._stopwatch.mark("evaluation")

    def _record_timing(self) -> None:
        """Tell the observers how long each phase has taken since the last call."""
        seconds = self._stopwatch.lap()
        for observer in self.observers:
            observer.spent(seconds)

    def _end(self) -> None:
        """Save the last step, and release a parameter server."""
        if self._saver is not None:
            self._saver.finish()
            self._stopwatch.mark("checkpoint")
        if self.state.budget is not None:
            self.state.budget.close(self.step, complete=not self.interrupted)
        self._record_timing()
        self._garbage.stop()
        self.update.close()
