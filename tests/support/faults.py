"""Manifests that must be refused: one table for admission without a cluster and for a real API server."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.builders import make_manifest, trainer_spec

Manifest = dict[str, Any]


class Fault(NamedTuple):
    """A manifest with one fault."""

    name: str
    manifest: Callable[[], Manifest]
    message: str
    """What `trainyard.admission` says."""
    server: str | None = None
    """Part of what an API server says; None: the same (a CEL rule of ours)."""
    strict: bool = False
    """The API server finds it in strict field validation only (the default of kubectl)."""


def _trainer(**changes: Any) -> Manifest:
    return make_manifest(trainer=trainer_spec(**changes))


def _model(**sizes: Any) -> Manifest:
    return _trainer(model={"name": "gpt", "preset": "nano", **sizes})


def _without(manifest: Manifest, *path: str) -> Manifest:
    node = manifest
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    return manifest


RULES = (
    Fault(
        "neither command nor trainer",
        lambda: _without(make_manifest(), "spec", "command"),
        "spec: exactly one of command (your own program) and trainer (the built-in one) must be given; "
        "add one or remove the other",
    ),
    Fault(
        "both command and trainer",
        lambda: make_manifest(trainer=trainer_spec(), command=["train"], image="x"),
        "spec: exactly one of command (your own program) and trainer (the built-in one) must be given; "
        "add one or remove the other",
    ),
    Fault(
        "args with the trainer",
        lambda: make_manifest(trainer=trainer_spec(), args=["--fast"]),
        "spec.args: needs spec.command; the built-in trainer takes no arguments, set its fields in spec.trainer",
    ),
    Fault(
        "command without an image",
        lambda: _without(make_manifest(), "spec", "image"),
        "spec.image: is required with spec.command; name the image that holds your program",
    ),
    Fault(
        "batch that the replicas do not divide",
        lambda: make_manifest(replicas=3, trainer=trainer_spec()),
        "spec.trainer.batch.global: must be a multiple of the world size (workers.replicas x "
        "workers.procsPerWorker); change the batch or the number of workers",
    ),
    Fault(
        "batch that the processes do not divide",
        lambda: make_manifest(workers={"procsPerWorker": 3}, trainer=trainer_spec()),
        "spec.trainer.batch.global: must be a multiple of the world size (workers.replicas x "
        "workers.procsPerWorker); change the batch or the number of workers",
    ),
    Fault(
        "batch that the GPUs do not divide",
        lambda: make_manifest(
            workers={"resources": {"limits": {"nvidia.com/gpu": 3}}},
            trainer=trainer_spec(),
        ),
        "spec.trainer.batch.global: must be a multiple of the world size (workers.replicas x "
        "workers.procsPerWorker); change the batch or the number of workers",
    ),
    Fault(
        "micro-batch that does not divide the share of a rank",
        lambda: _trainer(batch={"global": 16, "micro": 3}),
        "spec.trainer.batch.micro: the share of one rank (batch.global / world size) must be a multiple "
        "of it; choose a divisor, or auto",
    ),
    Fault(
        "processes per worker in a word",
        lambda: make_manifest(workers={"procsPerWorker": "many"}),
        "spec.workers.procsPerWorker: must be a whole number or must be 'auto', not 'many'",
        server="spec.workers.procsPerWorker: must be auto or a number from 1 to 64",
    ),
    Fault(
        "more processes per worker than there can be",
        lambda: make_manifest(workers={"procsPerWorker": 65}),
        "spec.workers.procsPerWorker: must be at most 64 or must be 'auto', not 65",
        server="spec.workers.procsPerWorker: must be auto or a number from 1 to 64",
    ),
    Fault(
        "width that the heads do not divide",
        lambda: _model(dim=100, heads=3),
        "spec.trainer.model.dim: must be a multiple of 2 x heads (rotary positions need heads of even "
        "width); change dim or heads",
    ),
    Fault(
        "heads that the key heads do not divide",
        lambda: _model(heads=4, kvHeads=3),
        "spec.trainer.model.heads: must be a multiple of kvHeads; change heads or kvHeads",
    ),
    Fault(
        "two sources of text",
        lambda: _trainer(data={"source": "text", "builtin": "python-stdlib", "path": "/data"}),
        "spec.trainer.data: exactly one of path and builtin must be given; remove one, or add one "
        "(builtin: python-stdlib needs no files)",
    ),
    Fault(
        "no source of text",
        lambda: _trainer(data={"source": "text"}),
        "spec.trainer.data: exactly one of path and builtin must be given; remove one, or add one "
        "(builtin: python-stdlib needs no files)",
    ),
    Fault(
        "a decay of one",
        lambda: _trainer(optimizer={"betas": [0.9, 1.0]}),
        "spec.trainer.optimizer.betas: each must lie in [0, 1); the usual ones are [0.9, 0.95]",
    ),
    Fault(
        "a warm-up longer than the training",
        lambda: _trainer(schedule={"warmupSteps": 101}),
        "spec.trainer.schedule.warmupSteps: must not exceed spec.trainer.stop.steps; shorten the warm-up "
        "or train longer",
    ),
    Fault(
        "a name too long for a pod's host name",
        lambda: make_manifest("a" * 51),
        "metadata.name: must be at most 50 characters, since pods are named NAME-ATTEMPT-INDEX "
        "and a pod's host name has 63; choose a shorter name",
    ),
    Fault(
        "a name that starts with a digit",
        lambda: make_manifest("1job"),
        "metadata.name: must start with a letter and hold only a-z, 0-9 and '-', since it names a "
        "Service; choose another name",
    ),
    Fault(
        "a name with a dot",
        lambda: make_manifest("my.job"),
        "metadata.name: must start with a letter and hold only a-z, 0-9 and '-', since it names a "
        "Service; choose another name",
    ),
)

SCHEMA = (
    Fault(
        "an unknown field with a likely meaning",
        lambda: make_manifest(workers={"replica": 2}),
        "spec.workers.replica: unknown field; did you mean replicas?",
        server='unknown field "spec.workers.replica"',
        strict=True,
    ),
    Fault(
        "an unknown field with no likely meaning",
        lambda: make_manifest(restartPolicy={"xyz": 1}),
        "spec.restartPolicy.xyz: unknown field; known here: limit, backoff",
        server='unknown field "spec.restartPolicy.xyz"',
        strict=True,
    ),
    Fault(
        "no workers at all",
        lambda: make_manifest(replicas=0),
        "spec.workers.replicas: must be at least 1, not 0",
        server="spec.workers.replicas: Invalid value: 0: spec.workers.replicas in body should be greater than or "
        "equal to 1",
    ),
    Fault(
        "a number in a string",
        lambda: make_manifest(workers={"replicas": "2"}),
        "spec.workers.replicas: must be a whole number, not '2'",
        server='spec.workers.replicas: Invalid value: "string": spec.workers.replicas in body must be of type integer',
    ),
    Fault(
        "a string for a list",
        lambda: make_manifest(command="train"),
        "spec.command: must be a list, not 'train'",
        server='spec.command: Invalid value: "string": spec.command in body must be of type array',
    ),
    Fault(
        "a number for a truth value",
        lambda: make_manifest(suspend=1),
        "spec.suspend: must be true or false, not 1",
        server='spec.suspend: Invalid value: "integer": spec.suspend in body must be of type boolean',
    ),
    Fault(
        "an empty command",
        lambda: make_manifest(command=[]),
        "spec.command: must have at least 1 entries, not []",
        server="spec.command: Invalid value: 0: spec.command in body should have at least 1 items",
    ),
    Fault(
        "an unknown preset",
        lambda: _model(preset="huge"),
        "spec.trainer.model.preset: must be 'nano', 'tiny', 'small', 'medium', '1b' or '8b', not 'huge'",
        server='spec.trainer.model.preset: Unsupported value: "huge": supported values: "nano", "tiny", "small", '
        '"medium", "1b", "8b"',
    ),
    Fault(
        "a learning rate of zero",
        lambda: _trainer(optimizer={"learningRate": 0}),
        "spec.trainer.optimizer.learningRate: must be greater than 0.0, not 0",
        server="spec.trainer.optimizer.learningRate: Invalid value: 0: spec.trainer.optimizer.learningRate in body "
        "should be greater than 0",
    ),
    Fault(
        "no batch size",
        lambda: _trainer(batch={}),
        "spec.trainer.batch.global: is required; add it",
        server="spec.trainer.batch.global: Required value",
    ),
    Fault(
        "an environment variable without a name",
        lambda: make_manifest(env=[{"name": "A", "value": "1"}, {"value": "2"}]),
        "spec.env[1].name: is required; add it",
        server="spec.env[1].name: Required value",
    ),
)

FAULTS = RULES + SCHEMA
