"""The implementations of the model families. `FAMILIES` is the registry; its keys are those of `trainyard.models`.

A package outside of this repository adds an entry to both registries. Models know nothing of parallelism; the file
`parallelize` of a family says which of its modules parallelism applies to.
"""

from trainyard_trainer.models import custom, llama, mlp, moe
from trainyard_trainer.models.family import Family

FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "moe": moe.FAMILY,
    "mlp": mlp.FAMILY,
    "custom": custom.FAMILY,
}
