"""Experiment trackers, on rank 0: TensorBoard, MLflow and Weights & Biases.

TensorBoard is enabled by spec.trainer.tensorboard, MLflow by the variable MLFLOW_TRACKING_URI, and Weights & Biases by
WANDB_API_KEY or WANDB_MODE. The last two need their own package in spec.image. A tracker that fails is dropped with a
warning; the run continues.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from trainyard.config import RunConfig
from trainyard.resume import leaves
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.runtime import log

FOLDER = "tensorboard"


class Tracker(Protocol):
    """Receives the metrics of a run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, by name."""

    def close(self) -> None:
        """Finish; no metrics follow."""


class TensorBoard:
    """Writes event files on the checkpoint volume, one for each attempt."""

    def __init__(self, root: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imported late: it takes most of a second

        self._writer = SummaryWriter(str(root / FOLDER))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, by name."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class MLflow:
    """Logs to one run of the experiment MLFLOW_EXPERIMENT_NAME, which all attempts of a run continue."""

    def __init__(self, config: RunConfig, run: str) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._mlflow = mlflow
        query = f"tags.`trainyard.run` = '{run}'"
        found = mlflow.search_runs(filter_string=query, max_results=1, output_format="list")
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
        else:
            job = f"{config.namespace}/{config.job}"
            mlflow.start_run(run_name=config.job, tags={"trainyard.job": job, "trainyard.run": run})
            mlflow.log_params(leaves(config.to_dict()))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, by name."""
        # In a thread of its own: a slow or unreachable server must not delay the ranks.
        self._mlflow.log_metrics(dict(metrics), step=step, synchronous=False)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WeightsAndBiases:
    """Logs to one run of the project WANDB_PROJECT, which all attempts of a run continue."""

    def __init__(self, config: RunConfig, run: str) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            id=run,
            resume="allow",
            name=config.job,
            group=f"{config.namespace}/{config.job}",
            config=config.to_dict(),
            # A field may change when the run resumes.
            allow_val_change=True,
            dir=os.environ.get("WANDB_DIR", "/tmp"),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, by name."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackers(Observer):
    """The trackers of a run."""

    def __init__(self, config: RunConfig, root: Path | None, run: str) -> None:
        """Start the trackers that are enabled.

        Args:
            config: configuration of the run.
            root: folder of the run on the checkpoint volume; None without one.
            run: identity of the run, see `trainyard.run_record`.
        """
        env = os.environ
        self._trackers: list[Tracker] = []
        if config.trainer.tensorboard and root is not None:
            self._add("TensorBoard", lambda: TensorBoard(root))
        if env.get("MLFLOW_TRACKING_URI"):
            self._add("MLflow", lambda: MLflow(config, run))
        if env.get("WANDB_API_KEY") or env.get("WANDB_MODE"):
            self._add("Weights & Biases", lambda: WeightsAndBiases(config, run))

    def _add(self, name: str, make: Callable[[], Tracker]) -> None:
        try:
            self._trackers.append(make())
        except ModuleNotFoundError as error:
            log.logger.warning("%s gets no metrics: the image has no package %s; add it", name, error.name)
        except Exception as error:  # noqa: BLE001 (a tracker may raise anything, and must not end the run)
            log.logger.warning("%s gets no metrics: %s", name, error)
        else:
            log.info(f"metrics are sent to {name}")

    def reported(self, report: StepReport) -> None:
        """Send the measurements of a report."""
        values = report.tracked()
        self._each(lambda tracker: tracker.write(report.step, values))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of an evaluation."""
        self._each(lambda tracker: tracker.write(step, {f"eval/{name}": value for name, value in metrics.items()}))

    def close(self) -> None:
        """Flush and close the trackers."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001 (a tracker may raise anything, and must not end the run)
                log.logger.warning("%s gets no more metrics: %s", type(tracker).__name__, error)
                self._trackers.remove(tracker)
