"""What makes a job slower or larger than it has to be, although it can run."""

from collections.abc import Iterator

from trainyard.config import RunConfig
from trainyard.resource.quantity import format_bytes, parse_bytes
from trainyard.resource.spec import TrainingJobSpec
from trainyard.sizing.activations import activations
from trainyard.sizing.fit import SHARED_FIELD, shared_memory_bytes, uses_gpus

SHM_PATH = "/dev/shm"


def warnings(spec: TrainingJobSpec, config: RunConfig) -> Iterator[str]:
    """Yield each of them, with the field, the reason and the fix."""
    volume = spec.checkpoint.volume if spec.checkpoint is not None else None
    if volume is not None and "emptyDir" in volume:
        yield (
            "spec.checkpoint.volume: an emptyDir is deleted with its pod, and the trained model with it; no new pod "
            "can resume; set claim, url or another volume"
        )
    gpu = uses_gpus(spec)
    scores = activations(config, gpu).attention_scores
    # No fast kernel of attention takes float32 and grouped queries.
    if scores:
        yield (
            "spec.trainer.precision: in float32 PyTorch has no fast attention for grouped queries on a GPU, so that "
            f"each layer holds {format_bytes(scores)} of attention scores per micro-batch, which grow with the square "
            "of sequenceLength; set bfloat16, or spec.trainer.model.kvHeads to the number of heads"
        )
    staged, limit = shared_memory_bytes(config, spec.procs_per_worker), _shared_memory_limit(spec)
    # The trainer notices the same before its first checkpoint, and then waits for each of them.
    if limit is not None and staged > limit:
        own = spec.workers.shared_memory is not None
        field, change = (SHARED_FIELD, "raise it") if own else ("spec.workers.template", "raise its sizeLimit")
        yield (
            f"{field}: the volume at {SHM_PATH} has {format_bytes(limit)}, but asynchronous checkpoints need "
            f"{format_bytes(staged)} there, so that training will wait for each checkpoint; {change}, or set "
            "spec.checkpoint.async: false"
        )


def _shared_memory_limit(spec: TrainingJobSpec) -> int | None:
    """Return the size that the user has given to /dev/shm, by the field or by a volume; None without one."""
    if spec.workers.shared_memory is not None:
        return parse_bytes(spec.workers.shared_memory)
    pod = spec.workers.template.spec or {}
    workers = [c for c in _objects(pod, "containers") if c.get("name") == "worker"]
    mounts = [m for worker in workers for m in _objects(worker, "volumeMounts")]
    names = {m.get("name") for m in mounts if str(m.get("mountPath", "")).rstrip("/") == SHM_PATH}
    for volume in _objects(pod, "volumes"):
        source = volume.get("emptyDir")
        if volume.get("name") in names and isinstance(source, dict) and "sizeLimit" in source:
            try:
                return parse_bytes(source["sizeLimit"])
            except ValueError:
                return None  # the API server refuses it with its own words
    return None


def _objects(parent: dict[str, object], field: str) -> list[dict[str, object]]:
    """Return the objects of a list in a pod, which the API server has not checked yet."""
    values = parent.get(field)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
