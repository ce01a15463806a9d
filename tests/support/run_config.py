"""Resolved configurations of small runs."""

from typing import Any

from trainyard.admission import admit
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.protocol.constants import API_VERSION
from trainyard.resolve import resolve

DIGITS: dict[str, Any] = {
    "model": {"name": "mlp", "hiddenSizes": [32]},
    "data": {"source": "table", "builtin": "digits", "evalFraction": 0.2},
    "batch": {"global": 64},
    "optimizer": {"name": "adam", "learningRate": 0.01},
    "stop": {"steps": 60},
}
"""A small run on a table."""


def make_config(
    world_size: int = 1,
    parallelism: dict[str, Any] | None = None,
    *,
    replace: bool = False,
    checkpoint: dict[str, Any] | None = None,
    **trainer: Any,
) -> RunConfig:
    """Return a tiny run that passes admission; other arguments are merged into spec.trainer, or replace parts of it."""
    model = {"name": "llama", "preset": "nano", "dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64}
    spec: dict[str, Any] = {
        "model": model,
        "data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": 16},
        "batch": {"global": 8},
        "optimizer": {"learningRate": 0.01},
        "stop": {"steps": 6},
        "logEverySteps": 1,
    }
    for key, value in trainer.items():
        merge = isinstance(value, dict) and key in spec and not replace
        spec[key] = {**spec[key], **value} if merge else value
    if spec["data"].get("path"):
        spec["data"].pop("builtin", None)
    workers = {"replicas": world_size}
    job: dict[str, Any] = {"workers": workers, "trainer": spec}
    if parallelism is not None:
        job["parallelism"] = parallelism
    if checkpoint is not None:
        job["checkpoint"] = {"volume": {"persistentVolumeClaim": {"claimName": "shared"}}, **checkpoint}
    body = {"apiVersion": API_VERSION, "kind": constants.KIND, "metadata": {"name": "tests"}, "spec": job}
    return resolve(admit(body))
