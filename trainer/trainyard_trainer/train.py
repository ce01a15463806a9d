"""The life of a run, from top to bottom, as one rank lives it."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.saver import Saver
from trainyard_trainer.checkpoint.storage import load, saved_shapes
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.table import Table
from trainyard_trainer.evaluation import evaluate
from trainyard_trainer.metrics.observer import Observer, Start
from trainyard_trainer.metrics.step_metrics import StepMetrics
from trainyard_trainer.metrics.stopwatch import Stopwatch
from trainyard_trainer.optim.guard import BadStepCounter, GradientGuard, nonfinite_score, nonfinite_sources
from trainyard_trainer.optim.optimizer import learning_rate_factor
from trainyard_trainer.optim.state import Tensors, model_tensors
from trainyard_trainer.optim.update import LocalUpdate, Update
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.parallel.parts import build_parts, parameter_count
from trainyard_trainer.parallel.passes import make_passes
from trainyard_trainer.parameter_server import RemoteUpdate
from trainyard_trainer.runtime import heartbeat, log
from trainyard_trainer.runtime.errors import BadSteps, ConfigError
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World
from trainyard_trainer.stopping import Convergence, total_steps


class Trainer:
    """A model, its data and its optimizer, trained for a number of steps.

    Losses and gradients are means over all tokens of the global batch, so the same configuration gives the same
    run on any number of ranks and with any micro-batch, up to rounding.
    """

    def __init__(self, config: RunConfig, world: World, samples: Samples) -> None:
        self.config = config
        self.world = world
        self.batches = Batches(samples, config, world)
        self.mesh = RankMesh(config.mesh, world)
        self.parts = build_parts(config, self.mesh, samples, world.device)
        # DistributedDataParallel puts a prefix before all names.
        named = [(n.removeprefix("module."), p) for part in self.parts for n, p in part.named_parameters()]
        self._named = named
        self.passes = make_passes(config, self.mesh, self.parts, world.device, self.batches)
        self.update: Update
        if world.servers:
            self.update = RemoteUpdate(named, world)
        else:
            guard = GradientGuard(config.health.bad_steps, world.all_true)
            self.update = LocalUpdate(named, config.trainer.optimizer, self.mesh, guard)
        self.bad_steps = BadStepCounter(config.health.bad_steps)
        self._reporting = StepMetrics(
            config, world, samples_per_step=self.batches.global_batch, counts_loss=self.mesh.counts_loss
        )
        self.total_steps = total_steps(config, self.batches.train_samples, self.batches.global_batch)
        self.step = 0
        """Optimizer steps done, those of earlier attempts too."""
        self.saver: Saver | None = None
        self.observers: list[Observer] = []
        """Who hears of this rank's steps."""
        self._watch = Stopwatch()
        self._source: Path | None = None
        self._fingerprint = samples.fingerprint
        self.figures: dict[str, Any] = {}
        """What is known of the run at this step, as JSON; it goes into each checkpoint, and comes back from it."""
        self.told_to_stop = False
        """Whether the training has ended early because a rank was told to stop. All that it did is saved then."""
        self.stopped_because: str | None = None
        """Why an evaluation has ended the training, perhaps before its last step."""
        self._convergence = Convergence(config.trainer.stop)
        parameters = parameter_count(config, samples)
        log.info(
            f"{parameters:,} parameters, {samples}, {world.size} ranks on {world.device.type}: {config.mesh}",
            parameters=parameters,
            samples=self.batches.train_samples,
            evalSamples=self.batches.eval_samples,
            worldSize=world.size,
            device=world.device.type,
            threads=torch.get_num_threads(),
        )
        self._classes = samples.class_count if isinstance(samples, Table) else None

    def go_on(self, saver: Saver) -> None:
        """Take up the newest whole checkpoint, whatever the layout that wrote it; from now on there will be more.

        Raises:
            ConfigError: it is of another model or optimizer.
        """
        self.saver = saver
        self._source = saver.find()
        if self._source is None:
            return
        about = self._take_up(self._source, saver)
        self.batches.set_position(self.step, about["samples"])
        self.bad_steps.row = about.get("badSteps", 0)
        log.info(f"continuing after step {self.step} from {self._source}", resumedStep=self.step)

    def _take_up(self, source: Path, saver: Saver) -> dict[str, Any]:
        """Be what a checkpoint holds, but for the samples, which the caller says. Returns its manifest."""
        about = catalog.read_manifest(source)
        self._check(about)
        if not self.update.tensors():  # in the middle of a run it is there, and no memory for it twice
            self.update.prepare(saved_shapes(source))
        load(source, model_tensors(self._named) | self.update.tensors(), saver.group)
        self.step = about["step"]
        self._convergence.recall(about["convergence"])
        self.stopped_because = about["stoppedBecause"]
        self.figures = about["figures"]
        return about

    def _pass_over(self, loss: float, norm: float) -> bool:
        """The step just done has changed nothing. Whether the run has gone back to an earlier one for it.

        Raises:
            BadSteps: spec.health.badSteps wants no more of them.
        """
        follows = self.bad_steps.bad(self.step, self.saver is not None)
        sources = nonfinite_sources(self.world.gather(nonfinite_score(loss, norm)))
        what = f"step {self.step}: the norm of the gradient is {norm:.4g}"
        if sources:
            link = "but no number on" if math.isfinite(norm) else "which came from"
            what += f", {link} rank {', '.join(map(str, sources))}"
        elif math.isfinite(norm):
            what += ", a spike"
        if self.world.rank == 0:
            log.logger.warning("%s; nothing was changed (%s)", what, self.bad_steps)
        for observer in self.observers:
            observer.skipped(self.step, norm)
        if follows == "Rollback" and self.saver is not None and self._go_back(self.saver):
            return True
        if follows != "Skip":
            action = f"spec.health.badSteps.action is {self.config.health.bad_steps.action}"
            elsewhere = bool(sources) and self.world.rank not in sources
            raise BadSteps(f"{what} ({self.bad_steps}); {action}", elsewhere=elsewhere)
        return False

    def _go_back(self, saver: Saver) -> bool:
        """Go back to the newest checkpoint, and on with new samples. False if there is none that may help."""
        drawn = self.batches.samples_consumed(self.step)
        source = saver.find_again()
        if source is None:
            return False
        self._take_up(source, saver)
        self.update.go_back(source)
        self.batches.set_position(self.step, drawn)
        if not self.bad_steps.gone_back(self.step):
            return False
        for observer in self.observers:
            observer.rolled_back(self.step)
        self._reporting.begin(self.step)
        heartbeat.start(self.step, self.config.health.hang_timeout_seconds)
        log.info(f"back at step {self.step}; the samples since then are not drawn again", rollback=self.step)
        return True

    def _check(self, about: dict[str, Any]) -> None:
        """Whether a checkpoint is of this run."""
        fix = "change it back, or choose another spec.checkpoint volume"
        model, optimizer = self.config.model.to_dict(), self.config.trainer.optimizer.name
        differing = [key for key in {*model, *about["model"]} if model.get(key) != about["model"].get(key)]
        if differing:
            key = min(differing)
            raise ConfigError(
                f"spec.trainer.model: {key} is {model.get(key)}, but the checkpoint {self._source} is of a model with "
                f"{about['model'].get(key)}; {fix}"
            )
        if optimizer != about["optimizer"]:
            raise ConfigError(
                f"spec.trainer.optimizer.name: is {optimizer}, but the checkpoint {self._source} was made with "
                f"{about['optimizer']}; {fix}"
            )
        if self._fingerprint != about["data"]:
            log.logger.warning("the data are not those that the checkpoint was trained on")

    def _snapshot(self) -> tuple[Tensors, dict[str, Any]]:
        """What a checkpoint after this step holds."""
        about = {
            "step": self.step,
            "samples": self.batches.samples_consumed(self.step),
            "model": self.config.model.to_dict(),
            "optimizer": self.config.trainer.optimizer.name,
            "data": self._fingerprint,
            "convergence": self._convergence.remember(),
            "stoppedBecause": self.stopped_because,
            "badSteps": self.bad_steps.row,
            "figures": self.figures,
        }
        return model_tensors(self._named) | self.update.tensors(), about

    def run(self) -> None:
        """Train to the last step.

        Between reports and evaluations nothing waits for the device but the update, for the norm of the gradient.
        """
        self._begin()
        first = self.step + 1
        while self.step < self.total_steps and not self.stopped_because and not self.told_to_stop:
            self._tell_time()
            loss, norm, learning_rate, made = self._make_step()
            if made:
                self.bad_steps.good()
            elif self._pass_over(loss.item(), norm.item()):
                self._watch.mark("other")
                continue
            self._reporting.after_step()
            evaluates = self._evaluates()
            if evaluates or self._reports(first):
                report = self._reporting.report(self.step, self.total_steps, loss, norm, learning_rate)
                for observer in self.observers:
                    observer.reported(report)
            self._watch.mark("other")
            if evaluates:
                self._evaluate()
            if self.saver is not None:
                self.told_to_stop = self.saver.after_step(self.step, self._snapshot, good=made)
                self._watch.mark("checkpoint")
        if self.saver is not None:
            self.saver.finish(self.step, self._snapshot)
            self._watch.mark("checkpoint")
        self._tell_time()
        self.update.close()

    def _begin(self) -> None:
        self._reporting.begin(self.step)
        start = Start(
            step=self.step,
            drawn=self.batches.samples_consumed(self.step),
            total_steps=self.total_steps,
            batch=self.batches.global_batch,
            samples=self.batches.train_samples,
        )
        for observer in self.observers:
            observer.begin(start)
        self.update.begin(self._source)
        heartbeat.start(self.step, self.config.health.hang_timeout_seconds)
        self._watch = Stopwatch()

    def _tell_time(self) -> None:
        seconds = self._watch.lap()
        for observer in self.observers:
            observer.spent(seconds)

    def _make_step(self) -> tuple[Tensor, Tensor, float, bool]:
        """One step. Returns this rank's loss, the norm of the gradient, the learning rate, and whether it was made."""
        for observer in self.observers:
            observer.before_step(self.step + 1)
        learning_rate = self._learning_rate()
        loss, waited = self._forward_backward()
        self._watch.mark("passes", waited=waited)
        if self.saver is not None:
            self.saver.before_update()
            self._watch.mark("checkpoint")
        heartbeat.beat(Phase.OPTIMIZER)
        norm, made = self.update.step(learning_rate)
        self._watch.mark("update")
        self.step += 1
        heartbeat.beat(Phase.AFTER_STEP, self.step)
        for observer in self.observers:
            observer.after_step(self.step)
        return loss, norm, learning_rate, made

    def _reports(self, first: int) -> bool:
        """Whether the step just done is reported anyway: the first of an attempt, every logEverySteps-th, the last."""
        return self.step in (first, self.total_steps) or self.step % self.config.trainer.log_every_steps == 0

    def _evaluates(self) -> bool:
        every = self.config.trainer.evaluation.every_steps
        now = self.step == self.total_steps or (every is not None and self.step % every == 0)
        return now and self.batches.eval_samples > 0

    def _evaluate(self) -> None:
        figures = evaluate(self.passes, self.batches, self.world, self._classes, self.mesh.counts_loss)
        rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
        for observer in self.observers:
            observer.evaluated(self.step, rounded)
        self.stopped_because = self._convergence.judge(figures["loss"])
        if self.stopped_because:
            log.info(f"stopped after step {self.step}: {self.stopped_because}")
        self._reporting.skip()
        self._watch.mark("evaluation")

    def _learning_rate(self) -> float:
        """That of the step to come."""
        trainer = self.config.trainer
        factor = learning_rate_factor(trainer.schedule, self.step + 1, self.total_steps)
        return trainer.optimizer.learning_rate * factor

    def _forward_backward(self) -> tuple[Tensor, float]:
        """Forward and backward over this rank's share of the global batch; see `Passes.run`."""
        return self.passes.run(self.batches, self.step)
