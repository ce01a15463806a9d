"""Results of lm-evaluation-harness (Gao et al., 2021), for the report of an evaluation.

`lm_eval --model hf --model_args pretrained=FOLDER --tasks ... --output_path DIR` writes results_TIME.json below DIR.
"""

import json
from pathlib import Path
from typing import Any

_ERROR = "_stderr"


def read_harness(path: Path) -> list[dict[str, Any]]:
    """Return the results in a file, or in the newest results_*.json below a folder.

    Returns:
        task, metric (with the part of the answer that is scored in parentheses, if not all of it is), value, and
        standard error (None if there is none) of each.

    Raises:
        ValueError: there are no such results; the message names the fix.
    """
    file = path
    if path.is_dir():
        found = sorted(path.rglob("results_*.json"), key=lambda each: each.name)
        if not found:
            raise ValueError(f"{path} has no results_*.json; name the --output_path of lm_eval, or the file")
        file = found[-1]
    try:
        results = json.loads(file.read_text("utf-8"))["results"]
        rows = [row for task, values in results.items() for row in _rows(str(task), values)]
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); correct the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} has no results of lm-evaluation-harness; name the file that lm_eval wrote") from error
    if not rows:
        raise ValueError(f"{file} has no metrics; name the results_*.json of a finished evaluation")
    return rows


def _rows(task: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics of a task, which are named METRIC,FILTER, beside METRIC_stderr,FILTER."""
    rows = []
    # Other values, such as the number of samples, have no filter in their names; old versions have none at all.
    metrics = {key: value for key, value in values.items() if "," in key} or values
    for key, value in metrics.items():
        metric, _, chosen = key.partition(",")
        if metric.endswith(_ERROR) or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}{_ERROR},{chosen}" if chosen else f"{metric}{_ERROR}")
        filtered = chosen if chosen not in ("", "none") else None
        rows.append(
            {
                "task": task,
                "metric": metric if filtered is None else f"{metric} ({filtered})",
                "value": float(value),
                "error": float(error) if isinstance(error, int | float) else None,
            }
        )
    return rows
