"""Devices of workers: which resources are accelerators, and how many processes follow from them.

A resource that is not known is never taken for a CPU: the user is asked for the number of processes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from trainyard.protocol import constants

NVIDIA, AMD, GAUDI = "nvidia.com/gpu", "amd.com/gpu", "habana.ai/gaudi"
MIG_PREFIX = "nvidia.com/mig-"
"""Prefix of the resources of parts of a GPU (Multi-Instance GPU), for example nvidia.com/mig-3g.40gb."""
_GPUS = (NVIDIA, AMD)
"""GPUs that torch.cuda uses: with CUDA, or with a build of torch for ROCm."""
_COUNTED = (*_GPUS, GAUDI)
"""Accelerators of which each needs a process of its own. Those of `MIG_PREFIX` do, too."""
_OTHERS = (
    GAUDI,
    "google.com/tpu",
    "aws.amazon.com/neuron",
    "aws.amazon.com/neuroncore",
    "gpu.intel.com/i915",
    "gpu.intel.com/xe",
)
"""Accelerators that the built-in trainer does not compute on."""
_PLAIN = ("cpu", "memory", "ephemeral-storage", "vpc.amazonaws.com/efa")
_PLAIN_PREFIXES = ("hugepages-", "rdma/", "networking.gke.io.networks/")
"""Resources that are no accelerators, with those that are network devices."""


def is_gpu(resource: str) -> bool:
    """Return whether a resource is a GPU, or a part of one, that the built-in trainer computes on."""
    return resource in _GPUS or resource.startswith(MIG_PREFIX)


def counted_devices(resources: Iterable[str]) -> list[str]:
    """Return the kinds of accelerators that need one process for each device, in order."""
    return [name for name in resources if name in _COUNTED or name.startswith(MIG_PREFIX)]


def devices(resources: Iterable[str]) -> list[str]:
    """Return all resources that are, or may be, accelerators, in order."""
    return [name for name in resources if name not in _PLAIN and not name.startswith(_PLAIN_PREFIXES)]


def device_claims(pod: Mapping[str, Any]) -> list[str]:
    """Return the names of the resource claims (dynamic resource allocation) that the worker container uses.

    How many devices a claim has, and of which kind, only its template and the scheduler know.

    Args:
        pod: the pod spec of a user's template, which the API server has not checked yet.
    """
    for container in _objects(pod, "containers"):
        if container.get("name") == constants.WORKER_CONTAINER:
            resources = container.get("resources")
            claims = _objects(resources, "claims") if isinstance(resources, dict) else []
            return [str(claim.get("name")) for claim in claims]
    return []


def _objects(parent: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    values = parent.get(field)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


# --- the same in the Common Expression Language, about the name `r` of a resource ------------------------------

_IS_MIG = f"r.startsWith('{MIG_PREFIX}')"
IS_GPU = f"(r in {list(_GPUS)} || {_IS_MIG})"
"""Expression for `is_gpu`."""
_IS_COUNTED = f"(r in {list(_COUNTED)} || {_IS_MIG})"
_IS_PLAIN = " || ".join([f"r in {list(_PLAIN)}", *(f"r.startsWith('{prefix}')" for prefix in _PLAIN_PREFIXES)])
_LIMITS = "self.workers.resources.limits"


def _any(condition: str) -> str:
    return f"(has({_LIMITS}) && {_LIMITS}.exists(r, {condition}))"


HAS_GPUS = _any(IS_GPU)
"""Expression for: each worker has GPUs in its limits; those of resource claims cannot be seen in CEL."""
HAS_NVIDIA = _any(f"r == '{NVIDIA}' || {_IS_MIG}")
"""Expression for: each worker has GPUs of NVIDIA in its limits."""
HAS_MIG = _any(_IS_MIG)
"""Expression for: each worker has parts of GPUs (MIG)."""
MAY_HAVE_CLAIMS = f"(type(self.workers.procsPerWorker) == int && !{_any(f'!({_IS_PLAIN})')})"
"""Expression for: the devices of the workers may come from resource claims, of which CEL sees nothing."""
HAS_OTHERS = _any(f"r in {list(_OTHERS)}")
"""Expression for: each worker has accelerators that the built-in trainer is known not to compute on."""
ONLY_PLAIN = f"(!has({_LIMITS}) || {_LIMITS}.all(r, {_IS_PLAIN}))"
"""Expression for: no resource in the limits of the workers is, or may be, an accelerator."""
COUNTED = f"(has({_LIMITS}) ? {_LIMITS}.filter(r, {_IS_COUNTED}) : [])"
"""Expression for the kinds of accelerators of each worker that need one process for each device."""


def _first(of_none: str, of_first: str) -> str:
    """Return an expression about the first kind of accelerator (`kinds[0]`), and of its number."""
    return f"[{COUNTED}].map(kinds, kinds.size() == 0 ? {of_none} : {of_first})[0]"


_NUMBER = f"{_LIMITS}[kinds[0]]"
_IS_WHOLE = f"(type({_NUMBER}) == int ? {_NUMBER} < 1000 : {_NUMBER}.matches('^[0-9]{{1,3}}$'))"
WHOLE_DEVICES = _first("true", _IS_WHOLE)
"""Expression for: the number of accelerators, if there are any, is a whole number below 1000. It can be converted then,
and the world size is a number of 64 bits."""
PROCS = (
    "(type(self.workers.procsPerWorker) == int ? self.workers.procsPerWorker : "
    + _first("1", f"({_IS_WHOLE} && int({_NUMBER}) > 0 ? int({_NUMBER}) : 1)")
    + ")"
)
"""Expression for: processes of each worker."""
