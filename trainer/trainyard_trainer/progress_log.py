"""The log lines of rank 0 about steps and evaluations, and the last report for checkpoints and the status."""

from collections.abc import Mapping

from trainyard.protocol.progress import Progress
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.runtime import log
from trainyard_trainer.train_state import TrainState


class ProgressLog(Observer):
    """Logs reports and evaluations, and keeps the last of them in the state of the run."""

    def __init__(self, state: TrainState, attempt: int) -> None:
        self._state = state
        self._attempt = attempt
        self.last: Progress | None = None
        """The last report of the run, including the last evaluation; None before the first one."""
        if state.progress is not None:
            self.last = state.progress.replace(attempt=attempt)

    def reported(self, report: StepReport) -> None:
        """Log the report of a step; the metrics of the last evaluation stay."""
        progress = report.progress(self._attempt)
        if self.last is not None:
            progress = progress.replace(eval_loss=self.last.eval_loss, metrics=self.last.metrics)
        self._keep(progress)
        log.info(str(report), **progress.to_dict(), seconds=round(report.seconds, 3))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an evaluation."""
        # Without a report before it, the job only evaluates weights that it has not trained.
        last = self.last or Progress(attempt=self._attempt, step=step)
        self._keep(last.replace(eval_loss=metrics["loss"], metrics=dict(metrics)))
        text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.info(f"evaluation after step {step}: {text}", evaluation=metrics)

    def _keep(self, progress: Progress) -> None:
        self.last = self._state.progress = progress
