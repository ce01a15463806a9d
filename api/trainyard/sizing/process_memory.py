"""Host memory of the processes of a worker besides what a rank allocates for its training."""

from trainyard.config import RunConfig
from trainyard.sizing.memory import staged_bytes

MiB = 2**20
LAUNCHER_BYTES = 400 * MiB
"""A worker's launcher with torch 2.15 imported, whose memory the ranks forked from it share. Measured as the
proportional set sizes of anonymous memory (Pss_Anon) of a worker's processes with 1, 2 and 4 ranks; memory mapped from
files does not count, since the kernel reclaims it before it kills a container for its limit."""
RANK_BYTES = 50 * MiB
"""What each rank adds to that besides its training, measured likewise."""
WRITER_BYTES = 362 * MiB
"""The process of a rank that writes asynchronous checkpoints, which imports torch for itself, and its resource tracker;
measured likewise."""
CUDA_HOST_BYTES = 1024 * MiB
"""Host memory of CUDA's context, its libraries and NCCL's buffers in each rank. A round number."""
GPU_BYTES = 1536 * MiB
"""GPU memory of CUDA's context, libraries and the buffers of NCCL. A round number: it depends on the GPU and the number
of process groups."""


INITIAL_WEIGHTS_BYTES = 40 * MiB
"""What a rank imports for spec.trainer.model.from, measured likewise: it checks the rules for layouts, whose
interpreter takes most of it, with the sizes of the model that it has found."""
PRIVACY_BYTES = 45 * MiB
"""What a rank imports for spec.trainer.privacy (Opacus and SciPy), measured as its proportional set size."""


def host_bytes_of_rank(config: RunConfig, gpu: bool) -> int:
    """Return the bytes of host memory of a rank, and of the process that writes its checkpoints, besides training."""
    writer = WRITER_BYTES if staged_bytes(config, 0) else 0
    privacy = 0 if config.trainer.privacy is None else PRIVACY_BYTES
    initial = 0 if config.trainer.model.from_ is None else INITIAL_WEIGHTS_BYTES
    return RANK_BYTES + writer + privacy + initial + (CUDA_HOST_BYTES if gpu else 0)
