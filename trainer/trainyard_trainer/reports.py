"""Reports at the end of a job: the evaluation of the model, and explanations of its predictions."""

from trainyard.config import RunConfig
from trainyard.run_record import RunRecord
from trainyard_trainer.data.evaluation_sets import sample_count
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.evaluation.report import Subject, describe_samples, evaluation_content, write_evaluation
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.train import Trainer

FOLDER = "reports"
"""Folder of the reports beside the checkpoints; each step has one of its own."""


class Reports:
    """Writes what spec.trainer asks for: all ranks call it, and rank 0 writes."""

    def __init__(self, config: RunConfig, root: Location, record: RunRecord | None, samples: Samples) -> None:
        """Prepare to write.

        Args:
            config: configuration of the run.
            root: folder of the checkpoints.
            record: record of the run that has trained the model; None if there is none.
            samples: the data.
        """
        self._config, self._root, self._record, self._samples = config, root, record, samples

    def write(self, trainer: Trainer) -> None:
        """Write the reports about the model as it is.

        Raises:
            OSError: the storage refuses.
        """
        spec = self._config.trainer
        folder = self._root / FOLDER / f"step-{trainer.step:08d}"
        reports = spec.task == "evaluate" or spec.evaluation.report
        # An earlier attempt has completed the training, and ended before it wrote the report.
        if reports and trainer.final_scores is None:
            trainer.score()
        scores = trainer.final_scores
        if reports and scores is not None and trainer.world.rank == 0:
            page = write_evaluation(folder, evaluation_content(self._subject(trainer), scores))
            log.info(f"report of the evaluation: {page}")
        if spec.explain is not None:
            from trainyard_trainer.explanation.run import explain_run  # imported late: captum takes a second

            explain_run(spec.explain, trainer, self._samples, self._subject(trainer), folder)

    def _subject(self, trainer: Trainer) -> Subject:
        return Subject(
            weights=f"{self._config.namespace}/{self._config.job}",
            model=self._config.model.name,
            step=trainer.step or None,
            run=None if self._record is None else self._record.id,
            data=str(self._samples),
            samples=describe_samples(self._record, self._samples, sample_count(trainer.batches.evaluated)),
        )
