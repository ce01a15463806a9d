"""How a model is spread over the ranks: applied from outside, in one place, in one fixed order."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from trainyard.config import MlpConfig, RunConfig
from trainyard.resource.parallelism import PipelineParallelism
from trainyard.sizing.pipeline_stages import layers_of_stage, stages_of_rank
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.table import Table
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.models.mlp import Mlp
from trainyard_trainer.models.transformer import Transformer
from trainyard_trainer.parallel.compilation import compile_blocks
from trainyard_trainer.parallel.context import split_context
from trainyard_trainer.parallel.expert import split_experts
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.parallel.recompute import recompute_activations
from trainyard_trainer.parallel.tensor import split_matrices


def build_parts(config: RunConfig, mesh: RankMesh, samples: Samples, device: torch.device) -> list[nn.Module]:
    """The parts of the model that this rank holds, in order of their stages: one, or two with some schedules.

    A part is made without memory, split, and only then filled, so that no rank ever holds more than its own.
    """
    # DistributedDataParallel gives means over the ranks, and a loss of the experts' load is no part of the sum.
    plain = mesh.sizes.size == 1 or (mesh.is_plain and config.model.name != "moe")
    parts: list[nn.Module] = []
    for stage in stages_of_rank(config.parallelism.pipeline, mesh.at.pipeline):
        part = _build_part(config, samples, stage)
        if isinstance(part, Transformer):
            _split(part, mesh)
            for mixture in part.mixtures():
                assert config.trainer.batch.global_ is not None, "admission leaves gd to the other models"
                mixture.balance.batch_tokens = config.trainer.batch.global_ * config.tokens_per_sample
            recompute_activations(part, config.trainer.activation_checkpointing)
            if config.trainer.compile:
                compile_blocks(part)
        if not plain and (mesh.parameters.size() > 1 or config.trainer.precision == "bfloat16"):
            _shard(part, mesh, config.trainer.precision)
        part.to_empty(device=device)
        if isinstance(part, Transformer):
            positions = part.config.sequence_length // mesh.sizes.context
            part.set_positions(mesh.at.context * positions, positions, device)
        initialize(part, config.trainer.seed, part.initial)
        parts.append(_replicate(part, device) if plain and mesh.forms_groups else part)
    return parts


def parameter_count(config: RunConfig, samples: Samples) -> int:
    """Number of trained scalars of the whole model."""
    whole = PipelineParallelism()
    return sum(p.numel() for p in _build_part(config, samples, 0, whole).parameters())


def _build_part(
    config: RunConfig, samples: Samples, stage: int, pipeline: PipelineParallelism | None = None
) -> Transformer | Mlp:
    """One stage of the model, without memory for its parameters."""
    with torch.device("meta"):
        if isinstance(config.model, MlpConfig):
            assert isinstance(samples, Table)
            return Mlp(samples.width, config.model.hidden_sizes, samples.class_count)
        pipeline = pipeline or config.parallelism.pipeline
        return Transformer(config.model, layers_of_stage(pipeline, config.model.layers, stage))


def _split(part: Transformer, mesh: RankMesh) -> None:
    if mesh.sizes.tensor > 1:
        split_matrices(part, mesh["tensor"])
    if mesh.sizes.context > 1:
        split_context(part, mesh.group("context"))
    if mesh.sizes.expert > 1:
        split_experts(part, mesh["expert"])


def _replicate(part: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Every rank holds all parameters; gradients are averaged while the backward pass runs (Li et al., 2020)."""
    return DistributedDataParallel(
        part,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def _shard(part: Transformer | Mlp, mesh: RankMesh, precision: str) -> None:
    """Shard parameters, gradients and optimizer state, block by block (FSDP2; ZeRO, Rajbhandari et al., 2020).

    With a shard axis of 1 this is plain data parallelism for models that are split in other ways, too.
    """
    # In a pipeline a block is used once per micro-batch, and to gather it each time would cost more than it saves.
    again = mesh.sizes.pipeline == 1
    policy = MixedPrecisionPolicy()
    if precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    apart: set[nn.Parameter] = set()
    if isinstance(part, Transformer) and mesh.sizes.expert > 1:
        if mesh.experts.size() > 1 or precision == "bfloat16":
            for mixture in part.mixtures():
                _fully_shard(mixture.experts, mesh.experts, policy, again)
        else:
            apart = {p for mixture in part.mixtures() for p in mixture.experts.parameters()}
    for block in part.layers() if isinstance(part, Transformer) else ():
        _fully_shard(block, mesh.parameters, policy, again, apart)
    _fully_shard(part, mesh.parameters, policy, again, apart)
    for module in part.modules():
        if isinstance(module, FSDPModule):
            # Gradients are added up: the loss is divided by the tokens of the whole batch already.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _fully_shard(
    module: nn.Module,
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy,
    again: bool,
    apart: set[nn.Parameter] | None = None,
) -> None:
    """Shard a module's parameters, but those that are sharded already or stay as they are (`apart`)."""
    ranks = mesh.size(1)

    def dim_of(parameter: nn.Parameter) -> Shard:
        """Stacks of fewer experts than ranks are cut through the matrices, so that no rank is left without a part."""
        shape = (parameter.to_local() if isinstance(parameter, DTensor) else parameter).shape
        return Shard(1 if len(shape) == 3 and shape[0] % ranks and shape[1] % ranks == 0 else 0)

    fully_shard(
        module,
        mesh=mesh,
        mp_policy=policy,
        reshard_after_forward=again,
        shard_placement_fn=dim_of,
        ignored_params=apart,
    )
