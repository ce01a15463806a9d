"""Faults of GPUs, recognized by what CUDA, torch and NCCL say about them: their class, and advice.

The texts are those of cudaGetErrorString (CUDA 13), torch's allocator, and the driver's Xid messages.
"""

import re
from dataclasses import dataclass

OUT_OF_MEMORY = "GPUOutOfMemory"
HARDWARE = "GPUFault"
CUDA_ERROR = "CUDAError"
NCCL_ERROR = "NCCLError"

MAX_TEXT = 4096
"""Characters of a message that are looked at."""


@dataclass(frozen=True, slots=True)
class GpuFault:
    """A class of failures that involve a GPU."""

    reason: str
    """Name of the class, in status.lastFailure.reason."""
    pattern: re.Pattern[str]
    advice: str
    """What to do, as the end of a message."""

    @property
    def hardware(self) -> bool:
        """Whether the device or its node is at fault, and not the program: the next attempt needs another device."""
        return self.reason == HARDWARE

    @property
    def of_device(self) -> bool:
        """Whether another attempt on the same device may fail in the same way."""
        return self.reason != NCCL_ERROR


def _fault(reason: str, pattern: str, advice: str) -> GpuFault:
    return GpuFault(reason, re.compile(pattern, re.IGNORECASE), advice)


FAULTS = (
    _fault(
        OUT_OF_MEMORY,
        r"(?:CUDA|HIP) out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|cuda failure '?out of memory",
        "lower spec.trainer.batch.micro, set spec.trainer.activationCheckpointing, or shard the model "
        "(spec.parallelism); `trainyard plan` estimates what fits if spec.workers.gpuMemory is given",
    ),
    _fault(
        HARDWARE,
        r"uncorrectable ECC error|uncorrectable NVLink error|over nvlink or a hardware error|hardware stack error"
        r"|GPU (?:is|has been) lost|fallen off the bus"
        r"|\bXid\b(?: \([^)]*\))?:? (?:48|63|64|74|79|94|95|119|120|14\d|150)\b",
        "the GPU or its NVLink is broken: the next attempt avoids the node; drain it, and see `nvidia-smi -q` and the "
        "Xid messages of its kernel",
    ),
    _fault(
        HARDWARE,
        r"CUDA-capable device\(s\) is/are busy or unavailable|no CUDA-capable device is detected"
        r"|system not yet initialized|CUDA unknown error|CUDA driver initialization failed",
        "the node offers a GPU that cannot be used: the next attempt avoids the node; check its driver, "
        "nvidia-fabricmanager, and processes that are left on the GPU (`nvidia-smi`)",
    ),
    _fault(
        CUDA_ERROR,
        r"driver version is insufficient|unsupported display driver / cuda driver|forward compatibility was attempted"
        r"|no kernel image is available|PTX was compiled with an unsupported toolchain",
        "the image, the driver and the GPU do not fit together: use an image that is built for this GPU and a driver "
        "for the image's version of CUDA",
    ),
    _fault(
        CUDA_ERROR,
        r"device-side assert triggered",
        "an index is out of range, for example a token that is not in the vocabulary; the log of the pod has the "
        "assertion, and with CUDA_LAUNCH_BLOCKING: 1 in spec.env the operation",
    ),
    _fault(
        CUDA_ERROR,
        r"CUDA error: |CUBLAS_STATUS_(?!SUCCESS)|CUDNN_STATUS_(?!SUCCESS)|cuda failure '?",
        "with CUDA_LAUNCH_BLOCKING: 1 in spec.env the stack shows the operation; if it always happens on one node, its "
        "GPU is suspect: see `nvidia-smi -q` and the Xid messages of its kernel",
    ),
    _fault(
        NCCL_ERROR,
        r"\bNCCL error\b|\bnccl(?:SystemError|InternalError|InvalidUsage|UnhandledCudaError)\b",
        "NCCL_DEBUG: INFO in spec.env shows the cause; often the network interface (NCCL_SOCKET_IFNAME, NCCL_IB_HCA) "
        "or the size of /dev/shm",
    ),
)
"""The classes; the first one that matches a text counts."""


def find_gpu_fault(text: str) -> GpuFault | None:
    """Return the class of a failure, given its exception and message; None if no GPU is involved."""
    text = text[:MAX_TEXT]
    return next((fault for fault in FAULTS if fault.pattern.search(text)), None)
