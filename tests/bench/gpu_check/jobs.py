"""Configurations of the check's runs, admitted and resolved as those of any job."""

from typing import Any

from tests.bench.gpu_check.sizes import Shape, Sizes
from trainyard.admission import admit
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.resolve import resolve
from trainyard.resource.health import HealthConfig

ENDLESS = 1_000_000
"""Steps of a run that is killed when it has shown what is wanted, so that it saves nothing at its end."""


def small(sizes: Sizes, ranks: int, parallelism: dict[str, Any] | None = None, **trainer: Any) -> RunConfig:
    """Return a run of the model that is compared; other arguments are fields of spec.trainer."""
    family = trainer.pop("family", {"name": "llama"})
    return _resolve(
        ranks,
        parallelism or {},
        {
            "model": {**family, **sizes.model},
            "data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": sizes.sequence_length},
            "batch": {"global": sizes.batch},
            "optimizer": {"learningRate": 1e-3, "eps": 1e-6},
            "stop": {"steps": sizes.steps},
            "precision": "bfloat16",
            "logEverySteps": 1,
            **trainer,
        },
    )


def endless(sizes: Sizes, ranks: int) -> RunConfig:
    """Return a run that continues until it is hurt."""
    config = small(sizes, ranks, {"data": {"mode": "fsdp"}} if ranks > 1 else None, stop={"steps": ENDLESS})
    return config.replace(health=HealthConfig(hang_timeout_seconds=sizes.hang_seconds))


def shaped(shape: Shape, ranks: int, layers: int | None = None, *, traced: bool = False) -> RunConfig:
    """Return the run whose speed is measured. `layers`: fewer than the model has; `traced`: with a trace of a step."""
    profile = {"profile": {"startStep": shape.log_every + 1, "steps": 1}} if traced else {}
    config = _resolve(
        ranks,
        {"data": {"mode": "fsdp"}} if ranks > 1 else {},
        {
            "model": {"name": "llama", **shape.model, **({"layers": layers} if layers else {})},
            "data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": shape.sequence_length},
            "batch": {"global": ranks * shape.batch_per_rank, "micro": shape.micro},
            "stop": {"steps": ENDLESS},
            "precision": "bfloat16",
            "compile": shape.compile,
            "logEverySteps": shape.log_every,
            **profile,
        },
        # Traces are written to the checkpoint volume; checkpoints are not.
        checkpoint={"volume": {"emptyDir": {}}, "everySteps": ENDLESS},
    )
    # The tokens are bytes, but embedding, head and loss have the size of a real vocabulary.
    return config.replace(model=config.model.model_copy(update={"vocab_size": shape.vocabulary}))


def _resolve(ranks: int, parallelism: dict[str, Any], trainer: dict[str, Any], **more: Any) -> RunConfig:
    workers = {"replicas": 1, "procsPerWorker": ranks}
    spec = {"workers": workers, "parallelism": parallelism, "trainer": trainer, **more}
    body = {
        "apiVersion": constants.API_VERSION,
        "kind": constants.KIND,
        "metadata": {"name": "gpu-check"},
        "spec": spec,
    }
    return resolve(admit(body))
