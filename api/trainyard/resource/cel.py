"""Sizes of a layout in the Common Expression Language, for rules whose `self` is a spec."""

from string import Formatter

from trainyard.models.family import Feature
from trainyard.resource.datasets import VOCABULARY
from trainyard.resource.devices import PROCS
from trainyard.resource.models import families_with, is_known_in_cel, preset_is_known, size_in_cel
from trainyard.resource.parallelism import VIRTUAL_STAGES

TENSOR = "(has(self.parallelism) ? self.parallelism.tensor : 1)"
CONTEXT = "(has(self.parallelism) ? self.parallelism.context : 1)"
EXPERT = "(has(self.parallelism) ? self.parallelism.expert : 1)"
STAGES = "(has(self.parallelism) ? self.parallelism.pipeline.stages : 1)"
MODEL_PARALLEL = f"({TENSOR} * {CONTEXT} * {STAGES})"
HAS_PARAMETER_SERVER = "has(self.parallelism) && self.parallelism.data.mode == 'parameterServer'"
WITHOUT_ZBV = f"{STAGES} == 1 || self.parallelism.pipeline.schedule != 'ZBV'"
_TWO_STAGES = [name for name, stages in VIRTUAL_STAGES.items() if stages == 2]
_TOTAL_STAGES = (
    f"{STAGES} * (has(self.parallelism) && self.parallelism.pipeline.schedule in {_TWO_STAGES} &&"
    " self.parallelism.pipeline.stages > 1 ? 2 : 1)"
)
_PLACEHOLDERS = {
    "tensor": TENSOR,
    "context": CONTEXT,
    "expert": EXPERT,
    "totalStages": f"({_TOTAL_STAGES})",
    "vocabulary": VOCABULARY.format(data="self.trainer.data"),
    "sequenceLength": "self.trainer.data.sequenceLength",
}


class _Terms(dict[str, str]):
    """CEL expressions for the placeholders of a `LayoutRule`; all names that are not here are sizes of the model."""

    def __missing__(self, field: str) -> str:
        return size_in_cel(field)


def model_rule(names: list[str], body: str) -> str:
    """Return a rule about models of the named families, with the placeholders of its body filled in.

    Where the preset belongs to another family, the rule about presets alone reports it.
    """
    model = "self.trainer.model"
    fields = dict.fromkeys(field for _, field, _, _ in Formatter().parse(body) if field and field not in _PLACEHOLDERS)
    known = f" || !{is_known_in_cel(fields)}" if fields else ""
    others = f"!has(self.trainer) || !({model}.name in {names}) || !{preset_is_known(model)}{known}"
    return f"{others} || ({body.format_map(_Terms(_PLACEHOLDERS))})"


def needs_feature(feature: Feature, unused: str) -> str:
    """Return a rule: a feature is unused, according to a CEL expression, or the model's family supports it."""
    return f"{unused} || !has(self.trainer) || self.trainer.model.name in {families_with(feature)}"


class Layout:
    """CEL expressions about the layout of the ranks; `replicas` is the expression for the number of workers."""

    def __init__(self, replicas: str) -> None:
        self._world = f"{replicas} * {PROCS}"  # as `TrainingJobSpec.world_size` has it in Python
        data = f"(world / {MODEL_PARALLEL})"
        mesh = f"world % {MODEL_PARALLEL} == 0"
        shard = (
            "!has(self.parallelism) || type(self.parallelism.data.shard) != int ||"
            f" !({mesh}) || {data} % {EXPERT} != 0 || {data} / {EXPERT} % self.parallelism.data.shard == 0"
        )
        expert = f"!({mesh}) || {data} % {EXPERT} == 0"
        # Where the mesh does not fit, the rule about the mesh alone reports it.
        batched = f"!has(self.trainer) || !has(self.trainer.batch.global) || !({mesh}) ||"
        batch = f"{batched} self.trainer.batch.global % {data} == 0"
        micro_batch = (
            f"{batched} type(self.trainer.batch.micro) != int ||"
            f" self.trainer.batch.global % ({data} * self.trainer.batch.micro) == 0"
        )
        pipeline = (
            f"{batched} {STAGES} == 1 || self.trainer.batch.global % ({data} * {STAGES} *"
            " (type(self.trainer.batch.micro) == int ? self.trainer.batch.micro : 1)) == 0"
        )
        self.mesh_fits, self.shard_fits, self.expert_fits = map(self.with_world, (mesh, shard, expert))
        self.batch_fits, self.micro_batch_fits, self.pipeline_fits = map(
            self.with_world, (batch, micro_batch, pipeline)
        )
        together = " && ".join(f"({rule})" for rule in (mesh, shard, expert, batch, micro_batch, pipeline))
        self.all_fits = self.with_world(together)
        """Expression for: every rule about the layout holds."""

    def with_world(self, expression: str) -> str:
        """Return an expression in which `world` is the world size, which is computed once."""
        return f"[{self._world}].all(world, {expression})"
