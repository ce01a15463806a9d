"""The report of an evaluation: evaluation.json for programs, evaluation.html for people."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from trainyard import __version__
from trainyard.run_record import RunRecord
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.evaluation.scores import Scores
from trainyard_trainer.html_page import write_file
from trainyard_trainer.runtime.object_store import Location

JSON_FILE, HTML_FILE = "evaluation.json", "evaluation.html"
FORMAT = 1
"""Version of the format of evaluation.json."""


@dataclass(frozen=True)
class Subject:
    """What a report is about."""

    weights: str
    """Job or folder that the weights are of."""
    model: str
    """Family of the model."""
    step: int | None
    """Optimizer steps that the weights have been trained for, if known."""
    run: str | None
    """Identity of the run that has trained them, if known."""
    data: str
    """Description of the data."""
    samples: str
    """Which samples these are, in relation to the training."""

    def content(self) -> dict[str, Any]:
        """Return the subject as JSON holds it."""
        now = datetime.now(UTC).replace(microsecond=0).isoformat()
        return {
            "format": FORMAT,
            "created": now,
            "versions": {"trainyard": __version__, "torch": torch.__version__},
            "weights": {"name": self.weights, "model": self.model, "step": self.step, "run": self.run},
            "data": {"description": self.data, "samples": self.samples},
        }


def describe_samples(record: RunRecord | None, samples: Samples, count: int) -> str:
    """Return which samples an evaluation uses, in relation to those that the model was trained on.

    Args:
        record: record of the run that has trained it; None if there is none.
        samples: the data.
        count: samples that are evaluated.
    """
    if record is None:
        return f"{count:,} samples; it is not known whether the model was trained on them"
    if record.data.fingerprint != samples.fingerprint:
        return f"{count:,} samples of other data than those of the run"
    held_out = sum(len(subset.held_out) for subset in samples.subsets)
    if record.data.eval_samples == held_out > 0:
        of_all = "" if count == held_out else f" of {held_out:,}"
        return f"{count:,}{of_all} samples that were held out from the training"
    return f"{count:,} samples of the run, with samples among them that the model was trained on"


def evaluation_content(subject: Subject, scores: Scores, harness: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the content of evaluation.json.

    Args:
        subject: what is evaluated on what.
        scores: sums over all positions.
        harness: results of lm-evaluation-harness, see `evaluation.harness`.
    """
    content = {**subject.content(), "positions": scores.positions(), "metrics": scores.metrics()}
    if len(scores.sources) > 1:
        content["sources"] = scores.source_metrics()
    if scores.classes is not None:
        content |= {"averages": scores.averages(), "classes": scores.class_metrics()}
    if len(scores.pairs):
        content["confusion"] = scores.pairs.tolist()
    if (calibration := scores.calibration()) is not None:
        content["calibration"] = calibration
    return {**content, **({"harness": list(harness)} if harness else {})}


def write_evaluation(folder: Location, content: Mapping[str, Any]) -> Location:
    """Write the report into a folder, and return the path of the page.

    Raises:
        OSError: the storage refuses.
    """
    from trainyard_trainer.evaluation.page import evaluation_page  # imported late: it needs matplotlib

    write_file(folder / JSON_FILE, to_json(content))
    write_file(folder / HTML_FILE, evaluation_page(content).content())
    return folder / HTML_FILE


def to_json(content: Any) -> str:
    """Return JSON, in which NaN and Inf are null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
