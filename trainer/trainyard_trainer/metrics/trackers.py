"""Experiment trackers: where figures go besides the log and Prometheus. Rank 0 only; off unless asked for.

TensorBoard by spec.trainer.tensorboard; MLflow if the environment has MLFLOW_TRACKING_URI, Weights & Biases if it has
WANDB_API_KEY or WANDB_MODE, each through its own package, which spec.image must hold. A tracker that fails is given up
with a warning: the run is worth more than its picture.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from trainyard.config import RunConfig
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.runtime import log

FOLDER = "tensorboard"


class Tracker(Protocol):
    """One of them."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step, by name."""

    def close(self) -> None:
        """No figures follow."""


class TensorBoard:
    """Event files on the checkpoint volume, one for each attempt."""

    def __init__(self, root: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imported late: it takes most of a second

        self._writer = SummaryWriter(str(root / FOLDER))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class MLflow:
    """A run of the experiment that MLFLOW_EXPERIMENT_NAME names, and the same one after a restart."""

    def __init__(self, config: RunConfig, resumed: bool) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._mlflow = mlflow
        tag = f"{config.namespace}/{config.job}"
        found = []
        if resumed:
            where = f"tags.`trainyard.job` = '{tag}'"
            found = mlflow.search_runs(filter_string=where, max_results=1, output_format="list")
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
        else:
            mlflow.start_run(run_name=config.job, tags={"trainyard.job": tag})
            mlflow.log_params(_parameters(config))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        # Not the training's thread: a server that is slow or gone must not hold up the ranks.
        self._mlflow.log_metrics(dict(figures), step=step, synchronous=False)

    def close(self) -> None:
        """See `Tracker`."""
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of the project that WANDB_PROJECT names, and the same one after a restart."""

    def __init__(self, config: RunConfig, resumed: bool, attempt: int) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            name=config.job,
            group=f"{config.namespace}/{config.job}",
            job_type="resumed" if resumed else "new",
            config=_parameters(config) | {"attempt": attempt},
            dir=os.environ.get("WANDB_DIR", "/tmp"),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class Trackers(Observer):
    """All that a run has."""

    def __init__(self, config: RunConfig, root: Path | None, attempt: int, *, resumed: bool) -> None:
        """`root`: the checkpoint volume; None without one."""
        env = os.environ
        self._trackers: list[Tracker] = []
        if config.trainer.tensorboard and root is not None:
            self._add("TensorBoard", lambda: TensorBoard(root))
        if env.get("MLFLOW_TRACKING_URI"):
            self._add("MLflow", lambda: MLflow(config, resumed))
        if env.get("WANDB_API_KEY") or env.get("WANDB_MODE"):
            self._add("Weights & Biases", lambda: WeightsAndBiases(config, resumed, attempt))

    def _add(self, name: str, make: Callable[[], Tracker]) -> None:
        try:
            self._trackers.append(make())
        except ModuleNotFoundError as error:
            log.logger.warning("%s gets no figures: the image has no package %s; add it", name, error.name)
        except Exception as error:  # noqa: BLE001 (whatever a tracker raises is not worth the run)
            log.logger.warning("%s gets no figures: %s", name, error)
        else:
            log.info(f"figures go to {name}")

    def reported(self, report: StepReport) -> None:
        """Figures of a step of the training."""
        figures = {
            "train/loss": report.loss,
            "train/learning_rate": report.learning_rate,
            "train/grad_norm": report.grad_norm,
            "train/tokens_per_second": report.tokens_per_second,
            "train/samples_per_second": report.samples_per_second,
        }
        if report.mfu is not None:
            figures["train/mfu"] = report.mfu
        self._each(lambda tracker: tracker.write(report.step, figures))

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of an evaluation."""
        self._each(lambda tracker: tracker.write(step, {f"eval/{name}": value for name, value in figures.items()}))

    def close(self) -> None:
        """Write what is left."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001 (whatever a tracker raises is not worth the run)
                log.logger.warning("%s gets no more figures: %s", type(tracker).__name__, error)
                self._trackers.remove(tracker)


def _parameters(config: RunConfig) -> dict[str, Any]:
    """What tells one run from another, flat."""
    trainer = config.trainer
    found = {"world_size": config.world_size, "mesh": str(config.mesh), "seed": trainer.seed}
    for part, values in (
        ("model", config.model.to_dict()),
        ("optimizer", trainer.optimizer.to_dict()),
        ("schedule", trainer.schedule.to_dict()),
        ("batch", trainer.batch.to_dict()),
    ):
        found |= {f"{part}.{name}": value for name, value in values.items() if not isinstance(value, dict)}
    return found
