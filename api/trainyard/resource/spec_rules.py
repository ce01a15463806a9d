"""Rules between the fields of a spec (CEL), which the API server and `trainyard.admission` enforce alike."""

from trainyard.base import Rule
from trainyard.models import FAMILIES
from trainyard.models.family import Feature, LayoutRule
from trainyard.resource.cel import (
    CONTEXT,
    EXPERT,
    HAS_PARAMETER_SERVER,
    MODEL_PARALLEL,
    STAGES,
    TENSOR,
    WITHOUT_ZBV,
    Layout,
    model_rule,
    needs_feature,
)
from trainyard.resource.datasets import HOLDS_OUT
from trainyard.resource.devices import (
    COUNTED,
    HAS_GPUS,
    HAS_MIG,
    HAS_NVIDIA,
    HAS_OTHERS,
    MAY_HAVE_CLAIMS,
    ONLY_PLAIN,
    PROCS,
    WHOLE_DEVICES,
)
from trainyard.resource.elastic import ELASTIC_RULES
from trainyard.resource.export import EXPORT_RULES
from trainyard.resource.insight import INSIGHT_RULES
from trainyard.resource.models import families_with, reasons_against
from trainyard.resource.privacy import PRIVACY_LAYOUT_RULES
from trainyard.resource.scheduling import SCHEDULING_RULES
from trainyard.resource.urls import SECRET_VARIABLES
from trainyard.text import listed

HAS_LORA = "has(self.trainer) && has(self.trainer.model.lora)"
_LAYOUT = Layout("self.workers.replicas")
GPU_MEMORY_NEEDS_GPUS = (
    "spec.workers.gpuMemory: needs workers with GPUs; set spec.workers.resources.limits[nvidia.com/gpu], or remove it"
)
ASYNC_TENSOR_NEEDS = (
    "spec.parallelism.asyncTensor: needs a tensor group of GPUs of one worker (tensor must divide "
    "workers.procsPerWorker), and spec.trainer.compile, which overlaps their communication; set them, or remove it"
)
FLOAT8_NEEDS_GPUS = (
    "spec.trainer.float8: needs GPUs of NVIDIA (H100 or newer), since a CPU has no products in float8; set "
    "spec.workers.resources.limits[nvidia.com/gpu], or remove it"
)
"""Messages of rules that `trainyard.resolve` applies, too, where devices may come from resource claims."""
_AXES: dict[Feature, tuple[str, str]] = {
    "tensor": ("spec.parallelism.tensor", TENSOR),
    "context": ("spec.parallelism.context", CONTEXT),
    "expert": ("spec.parallelism.expert", EXPERT),
    "pipeline": ("spec.parallelism.pipeline.stages", STAGES),
}
"""Field and size of the axes that only some model families support."""


def _axis_rule(axis: Feature) -> Rule:
    """Return the rule that an axis is for the families that support it."""
    field, size = _AXES[axis]
    names = families_with(axis)
    return Rule(
        needs_feature(axis, f"{size} == 1"),
        f"{field}: is for {listed(names)} only{reasons_against(axis)}; remove it, or set "
        f"spec.trainer.model.name: {listed(names, 'or')}",
    )


def _layout_rules() -> tuple[Rule, ...]:
    """Return the rules of the model families about the layout, each once with all families that have it."""
    shared: dict[LayoutRule, list[str]] = {}
    for name, family in FAMILIES.items():
        for rule in family.layout_rules:
            shared.setdefault(rule, []).append(name)
    return tuple(Rule(model_rule(names, rule.cel), rule.message) for rule, names in shared.items())


SPEC_RULES: tuple[Rule, ...] = (
    Rule(
        "has(self.command) != has(self.trainer)",
        "spec: exactly one of command (your own program) and trainer (the built-in one) must be given; "
        "add one or remove the other",
    ),
    Rule(
        "!has(self.args) || has(self.command)",
        "spec.args: needs spec.command; the built-in trainer takes no arguments, set its fields in spec.trainer",
    ),
    Rule(
        "has(self.image) || !has(self.command)",
        "spec.image: is required with spec.command; name the image that holds your program",
    ),
    Rule(
        "has(self.managedBy) == has(oldSelf.managedBy) &&"
        " (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)",
        "spec.managedBy: cannot be changed; delete the job and create it again",
    ),
    Rule(
        "self.successPolicy == 'AllWorkers' || has(self.command)",
        "spec.successPolicy: RankZero is for spec.command; remove it, since all ranks of the built-in trainer end "
        "together",
    ),
    Rule(
        "!has(self.parallelism) || has(self.trainer)",
        "spec.parallelism: needs spec.trainer; a program of your own lays out its ranks by itself",
    ),
    Rule(
        "!has(self.metrics) || has(self.command)",
        "spec.metrics: is about spec.command; the built-in trainer serves its metrics by itself, remove it",
    ),
    Rule(
        "!has(self.health) || has(self.trainer)",
        "spec.health: needs spec.trainer; a program of your own reports no steps, remove it",
    ),
    Rule(
        "has(self.trainer) || !has(self.checkpoint) || !(has(self.checkpoint.everySteps) ||"
        " has(self.checkpoint.everySeconds) || has(self.checkpoint.keep) || has(self.checkpoint.async))",
        "spec.checkpoint: everySteps, everySeconds, keep and async are the built-in trainer's; remove them, a "
        "program of your own finds the volume at TRAINYARD_CHECKPOINTS and writes to it as it likes",
    ),
    Rule(
        "!has(self.trainer) || !has(self.checkpoint) || !has(self.checkpoint.volume) ||"
        " !(has(self.checkpoint.volume.emptyDir) || has(self.checkpoint.volume.ephemeral)) ||"
        f" (self.workers.replicas == 1 && !({HAS_PARAMETER_SERVER}))",
        "spec.checkpoint.volume: emptyDir and ephemeral give each pod a volume of its own, so that no checkpoint of "
        "several pods would be complete; set spec.checkpoint.claim, url, or a volume that all pods share",
    ),
    Rule(
        f"!has(self.env) || self.env.all(e, !has(e.value) || e.value == '' || !(e.name in {list(SECRET_VARIABLES)}))",
        f"spec.env: {listed(SECRET_VARIABLES, 'and')} must come from a Secret, since every user who may read the job "
        "can read its values; use valueFrom.secretKeyRef",
    ),
    Rule(
        f"!has(self.parameterServer) || {HAS_PARAMETER_SERVER}",
        "spec.parameterServer: is only for spec.parallelism.data.mode parameterServer; remove it, or set that mode",
    ),
    Rule(
        f"!({HAS_PARAMETER_SERVER}) || {MODEL_PARALLEL} * {EXPERT} == 1",
        "spec.parallelism.data.mode: parameterServer needs the entire model on each rank; remove tensor, context, "
        "expert and pipeline, or choose ddp, fsdp or hsdp",
    ),
    Rule(
        needs_feature("parameterServer", f"!({HAS_PARAMETER_SERVER})"),
        f"spec.parallelism.data.mode: parameterServer is for {listed(families_with('parameterServer'))} only"
        f"{reasons_against('parameterServer')}; choose ddp, fsdp or hsdp, or another spec.trainer.model.name",
    ),
    Rule(
        WHOLE_DEVICES,
        "spec.workers.resources.limits: the number of GPUs or other accelerators must be a whole number below 1000; "
        "correct it, without a unit",
    ),
    Rule(
        f"type(self.workers.procsPerWorker) == int || {COUNTED}.size() <= 1",
        "spec.workers.procsPerWorker: auto is the number of devices of one kind, but workers.resources.limits has more "
        "than one kind; set it to the number of processes in each worker",
    ),
    Rule(
        f"has(self.trainer) || type(self.workers.procsPerWorker) == int || {COUNTED}.size() > 0 || {ONLY_PLAIN}",
        "spec.workers.procsPerWorker: auto does not know which devices in workers.resources.limits need a process of "
        "their own; set it to the number of processes in each worker",
    ),
    Rule(
        f"!has(self.trainer) || {HAS_GPUS} || !{HAS_OTHERS}",
        "spec.trainer: computes on GPUs of NVIDIA and AMD and on CPUs, and not on other accelerators in "
        "spec.workers.resources.limits; remove them, or run a program of your own with spec.command",
    ),
    Rule(
        f"!has(self.trainer) || {HAS_GPUS} || {HAS_OTHERS} || {ONLY_PLAIN} || type(self.workers.procsPerWorker) == int",
        "spec.trainer: computes on GPUs of NVIDIA and AMD and on CPUs, and does not know whether another resource in "
        "spec.workers.resources.limits is an accelerator; remove it, or set spec.workers.procsPerWorker to the number "
        "of processes in each worker, which then compute on CPUs",
    ),
    Rule(
        f"!has(self.trainer) || !{HAS_MIG} || {PROCS} == 1",
        "spec.workers.resources.limits: CUDA shows a process only one MIG device, so that a worker of the built-in "
        "trainer has one process and one device; set 1 and procsPerWorker: auto, and raise workers.replicas",
    ),
    Rule(f"!has(self.workers.gpuMemory) || {HAS_GPUS} || {MAY_HAVE_CLAIMS}", GPU_MEMORY_NEEDS_GPUS),
    Rule(
        _LAYOUT.mesh_fits,
        "spec.parallelism: tensor x context x pipeline.stages must divide the world size (workers.replicas x "
        "workers.procsPerWorker); change an axis or the number of workers",
    ),
    Rule(
        _LAYOUT.shard_fits,
        "spec.parallelism.data.shard: must divide the number of data-parallel ranks (world size / (tensor x "
        "context x pipeline.stages)) over expert; choose a divisor",
    ),
    Rule(
        _LAYOUT.expert_fits,
        "spec.parallelism.expert: must divide the number of data-parallel ranks (world size / (tensor x context x "
        "pipeline.stages)), which hold the experts together; choose a divisor, or change the number of workers",
    ),
    *map(_axis_rule, _AXES),
    Rule(
        "!has(self.health) || !has(self.health.straggler) || self.health.straggler.action != 'Replace'"
        " || has(self.checkpoint)",
        "spec.health.straggler.action: Replace restarts the group, and without checkpoints from the first step; "
        "add spec.checkpoint, or choose Report",
    ),
    Rule(
        "!has(self.health) || self.health.badSteps.action != 'Rollback' || has(self.checkpoint)",
        "spec.health.badSteps.action: Rollback goes back to a checkpoint, but none are written; add "
        "spec.checkpoint, or choose Skip",
    ),
    Rule(
        "!has(self.trainer) || !(self.trainer.tensorboard || has(self.trainer.profile)) ||"
        " (has(self.checkpoint) && !has(self.checkpoint.url))",
        "spec.trainer: tensorboard and profile write to the checkpoint volume; set spec.checkpoint.volume or claim, or "
        "remove them",
    ),
    Rule(
        "!has(self.trainer) || !has(self.trainer.signingKeyFile) || has(self.checkpoint)",
        "spec.trainer.signingKeyFile: signs the records of checkpoints, but none are written; add spec.checkpoint, or "
        "remove it",
    ),
    Rule(
        "!has(self.trainer) || !has(self.trainer.profile) ||"
        f" {_LAYOUT.with_world('self.trainer.profile.ranks.all(rank, rank < world)')}",
        "spec.trainer.profile.ranks: must be ranks of this job, which are numbered from 0 to workers.replicas x "
        "workers.procsPerWorker - 1; correct them",
    ),
    Rule(
        _LAYOUT.batch_fits,
        "spec.trainer.batch.global: must be a multiple of the number of data-parallel ranks (workers.replicas x "
        "workers.procsPerWorker / (tensor x context x pipeline.stages)); change the batch or the number of workers",
    ),
    Rule(
        _LAYOUT.micro_batch_fits,
        "spec.trainer.batch.micro: the share of one rank (batch.global / data-parallel ranks) must be a multiple "
        "of it; choose a divisor, or auto",
    ),
    Rule(
        _LAYOUT.pipeline_fits,
        "spec.trainer.batch: a pipeline needs a multiple of its stages as micro-batches per step (batch.global / "
        "data-parallel ranks / batch.micro); change the batch or spec.parallelism.pipeline.stages",
    ),
    *_layout_rules(),
    Rule(
        f"!has(self.trainer) || !{HOLDS_OUT.format(data='self.trainer.data')} || {WITHOUT_ZBV}",
        "spec.parallelism.pipeline.schedule: ZBV cannot evaluate (torch 2.15 has no forward pass alone for it); "
        "choose Interleaved1F1B, or remove evalFraction and evalPath from spec.trainer.data",
    ),
    Rule(
        f"!has(self.trainer) || self.trainer.activationCheckpointing != 'selective' || {WITHOUT_ZBV}",
        "spec.trainer.activationCheckpointing: selective does not work with ZBV, whose backward pass has two "
        "parts; choose full, none, or another spec.parallelism.pipeline.schedule",
    ),
    Rule(
        f"!has(self.trainer) || !self.trainer.compile || {WITHOUT_ZBV}",
        "spec.trainer.compile: does not work with the schedule ZBV, which divides the backward pass of a block, while "
        "a compiled one is indivisible; remove it, or choose another spec.parallelism.pipeline.schedule",
    ),
    Rule(
        f"!has(self.parallelism) || !self.parallelism.asyncTensor || ({TENSOR} > 1 &&"
        f" ({HAS_NVIDIA} || {MAY_HAVE_CLAIMS}) &&"
        f" {PROCS} % {TENSOR} == 0 && has(self.trainer) && self.trainer.compile)",
        ASYNC_TENSOR_NEEDS,
    ),
    Rule(
        f"!has(self.trainer) || !self.trainer.float8 || {HAS_NVIDIA} || {MAY_HAVE_CLAIMS}",
        FLOAT8_NEEDS_GPUS,
    ),
    Rule(
        f"!has(self.trainer) || !self.trainer.float8 || !({HAS_PARAMETER_SERVER}) && {TENSOR} == 1",
        "spec.trainer.float8: does not work with tensor or a parameter server; remove it, or choose another layout",
    ),
    Rule(
        f"!has(self.trainer) || !self.trainer.float8 || self.trainer.data.sequenceLength % (16 * {CONTEXT}) == 0",
        "spec.trainer.float8: products in float8 need positions in multiples of 16; make "
        "spec.trainer.data.sequenceLength a multiple of 16 x spec.parallelism.context, or remove it",
    ),
    Rule(
        f"!({HAS_LORA}) || {TENSOR} == 1 && !({HAS_PARAMETER_SERVER})",
        "spec.trainer.model.lora: adapters are not divided by a tensor group, and a parameter server updates all "
        "parameters; choose ddp, fsdp, hsdp, context or pipeline",
    ),
    Rule(
        f"!({HAS_LORA}) || !self.trainer.float8",
        "spec.trainer.float8: is for matrices that are trained, not for those with adapters; remove it, or "
        "spec.trainer.model.lora",
    ),
    *EXPORT_RULES,
    *INSIGHT_RULES,
    *PRIVACY_LAYOUT_RULES,
    *ELASTIC_RULES,
    *SCHEDULING_RULES,
)
