"""Sizes of a layout in the Common Expression Language, for rules of a spec (`self`)."""

from trainyard.resource.models import preset_is_known
from trainyard.resource.parallelism import VIRTUAL_STAGES

_GPUS = "self.workers.resources.limits['nvidia.com/gpu']"
_PROCS = (
    "(type(self.workers.procsPerWorker) == int ? self.workers.procsPerWorker :"
    " (has(self.workers.resources.limits) && 'nvidia.com/gpu' in self.workers.resources.limits"
    f" && int({_GPUS}) > 0 ? int({_GPUS}) : 1))"
)
TENSOR = "(has(self.parallelism) ? self.parallelism.tensor : 1)"
CONTEXT = "(has(self.parallelism) ? self.parallelism.context : 1)"
EXPERT = "(has(self.parallelism) ? self.parallelism.expert : 1)"
STAGES = "(has(self.parallelism) ? self.parallelism.pipeline.stages : 1)"
MODEL_PARALLEL = f"({TENSOR} * {CONTEXT} * {STAGES})"
SERVES = "has(self.parallelism) && self.parallelism.data.mode == 'parameterServer'"
NO_V = f"{STAGES} == 1 || self.parallelism.pipeline.schedule != 'ZBV'"
TWO_STAGES = [name for name, stages in VIRTUAL_STAGES.items() if stages == 2]
# Where the preset belongs to another model, the rule about presets alone reports it.
_FOREIGN_PRESET = f"!{preset_is_known('self.trainer.model')}"
IF_TRANSFORMER = f"!has(self.trainer) || self.trainer.model.name == 'mlp' || {_FOREIGN_PRESET} ||"
IF_MOE = f"!has(self.trainer) || self.trainer.model.name != 'moe' || {_FOREIGN_PRESET} ||"


class Layout:
    """Rules about the layout of the ranks with a number of workers, itself an expression."""

    def __init__(self, replicas: str) -> None:
        world = f"({replicas} * {_PROCS})"  # as `TrainingJobSpec.world_size` has it in Python
        self.world = world
        data = f"({world} / {MODEL_PARALLEL})"
        self.mesh_fits = f"{world} % {MODEL_PARALLEL} == 0"
        self.shard_fits = (
            "!has(self.parallelism) || type(self.parallelism.data.shard) != int ||"
            f" !({self.mesh_fits}) || {data} % {EXPERT} != 0 ||"
            f" {data} / {EXPERT} % self.parallelism.data.shard == 0"
        )
        self.expert_fits = f"!({self.mesh_fits}) || {data} % {EXPERT} == 0"
        # Only where the mesh fits; where it does not, that rule alone speaks.
        batched = f"!has(self.trainer) || !has(self.trainer.batch.global) || !({self.mesh_fits}) ||"
        self.batch_fits = f"{batched} self.trainer.batch.global % {data} == 0"
        self.micro_batch_fits = (
            f"{batched} type(self.trainer.batch.micro) != int ||"
            f" self.trainer.batch.global % ({data} * self.trainer.batch.micro) == 0"
        )
        self.pipeline_fits = (
            f"{batched} {STAGES} == 1 || self.trainer.batch.global % ({data} * {STAGES} *"
            " (type(self.trainer.batch.micro) == int ? self.trainer.batch.micro : 1)) == 0"
        )

    @property
    def all_fits(self) -> str:
        """All of them."""
        rules = (
            self.mesh_fits,
            self.shard_fits,
            self.expert_fits,
            self.batch_fits,
            self.micro_batch_fits,
            self.pipeline_fits,
        )
        return " && ".join(f"({rule})" for rule in rules)
