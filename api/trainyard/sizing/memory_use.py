"""What the ranks do with memory that is not needed: what is fast, if the memory in the spec is enough for it."""

from trainyard.config import MemoryUse, RunConfig
from trainyard.resource.spec import TrainingJobSpec
from trainyard.sizing.fit import Fit, fit, server_fit, uses_gpus
from trainyard.sizing.peak_memory import accumulates_shards
from trainyard.sizing.placement import placement

COMPLETE_SHARE = 0.8
"""Share of the memory that the estimate with complete gradients may fill."""
KEPT, KEPT_SHARDED = 2, 5
"""How many times the estimate of a rank's training is resident, at most, if freed memory is kept on a CPU: measured
1.1 to 2 times with whole parameters, and 2 to 4.3 times with sharded ones, whose gathered copies fragment it."""


def choose_memory_use(spec: TrainingJobSpec, config: RunConfig) -> MemoryUse:
    """Return what the ranks do with memory that is not needed."""
    try:
        use = MemoryUse(gradients="complete" if _fits_complete(spec, config) else "sharded")
        return use.replace(keep_freed=_keeps(spec, config.replace(memory_use=use)))
    except ValueError:
        # The memory in the spec is not a quantity, for which the job is refused.
        return MemoryUse()


def _fits_complete(spec: TrainingJobSpec, config: RunConfig) -> bool:
    """Return whether all gradients of a rank's layers surely fit until the last micro-batch.

    A single reduction per step sends less. But it takes the memory of all parameters in float32, so that a rank needs
    as much as without sharding; nothing is risked where the memory is not known.
    """
    if config.accumulation == 1 or not accumulates_shards(config):
        return False
    found = fit(spec, config.replace(memory_use=MemoryUse(gradients="complete")))
    return found.available is not None and found.needed <= COMPLETE_SHARE * found.available


def _keeps(spec: TrainingJobSpec, config: RunConfig) -> bool:
    """Return whether memory that ranks on CPUs keep surely fits."""
    factor = KEPT_SHARDED if placement(config).sharded else KEPT
    workers = [] if uses_gpus(spec) else [(fit(spec, config), spec.procs_per_worker, factor)]
    server = server_fit(spec, config)
    servers = [(server, 1, KEPT)] if server is not None else []
    return all(_has_room(*each) for each in workers + servers)


def _has_room(found: Fit, procs: int, factor: int) -> bool:
    """Return whether `factor` times the memory of training fits besides the processes; without a limit it does."""
    process = procs * (found.process + found.memory.checkpoint)
    return found.available is None or process + factor * (found.needed - process) <= found.available
