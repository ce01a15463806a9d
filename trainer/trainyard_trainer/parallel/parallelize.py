"""How a model is divided among the ranks: applied from outside of the model, here and in one fixed order."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from trainyard.config import RunConfig
from trainyard.models.family import DataShape
from trainyard.resource.parallelism import PipelineParallelism
from trainyard.sizing.pipeline_stages import layers_of_stage, stages_of_rank
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.table import Table
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.family import Model, ParallelPlan
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.models.lora import apply_lora, initial_with_adapters, is_adapter
from trainyard_trainer.parallel.activation_checkpoint import apply_activation_checkpointing
from trainyard_trainer.parallel.compilation import compile_blocks, overlap_collectives
from trainyard_trainer.parallel.context import apply_context_parallel
from trainyard_trainer.parallel.expert import apply_expert_parallel
from trainyard_trainer.parallel.float8 import apply_float8
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.parallel.tensor import apply_tensor_parallel
from trainyard_trainer.runtime.errors import ConfigError

STACK_DIMS = 3
"""Dimensions of the parameters of experts [experts, in, out]; all other parameters have fewer."""


def build_model_parts(config: RunConfig, mesh: RankMesh, samples: Samples, device: torch.device) -> list[nn.Module]:
    """Return the parts of the model on this rank, one for each of its pipeline stages, in order.

    A part is made without memory for its parameters, and divided, before it is given memory for this rank's part of
    them. The memory is not filled: `initialize_parts` or a checkpoint does that.
    """
    wrapper = data_parallel_wrapper(config, mesh)
    if config.parallelism.async_tensor:
        overlap_collectives(device)
    parts: list[nn.Module] = []
    for stage in stages_of_rank(config.parallelism.pipeline, mesh.at.pipeline):
        part = _build_stage(config, samples, stage)
        plan = FAMILIES[config.model.name].plan(part)
        if config.trainer.float8:
            apply_float8(plan, device)
        _divide(plan, mesh)
        part.tie()
        _set_batch_tokens(plan, config)
        apply_activation_checkpointing(part, plan, config.trainer.activation_checkpointing)
        if config.trainer.compile:
            compile_blocks(part, plan)
        if wrapper == "fully_shard":
            apply_fsdp(part, plan, mesh, config.trainer.precision)
        part.to_empty(device=device)
        part.tie()
        positions = config.trainer.data.sequence_length // mesh.sizes.context
        part.set_positions(mesh.at.context * positions, positions, device)
        parts.append(apply_ddp(part, device) if wrapper == "ddp" else part)
    return parts


def initialize_parts(parts: list[nn.Module], seed: int, *, adapters_only: bool = False) -> None:
    """Fill the parameters of this rank, or only its adapters, with their initial values."""
    for part in parts:
        model = part.module if isinstance(part, DistributedDataParallel) else part
        assert isinstance(model, Model)
        initialize(model, seed, initial_with_adapters(model), is_adapter if adapters_only else None)


def named_parameters(parts: Sequence[nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of this rank with their names in the model, which no wrapper of a module changes."""
    models = [part.module if isinstance(part, DistributedDataParallel) else part for part in parts]
    return [named for model in models for named in model.named_parameters()]


def whole_model(config: RunConfig, samples: Samples, parts: Sequence[nn.Module], device: torch.device) -> Model:
    """Return the model without what divides it, in float32, with the parameters of this rank.

    Each rank must hold the entire model. Parameters that are float32 already are not copied.
    """
    model = _build_stage(config, samples, 0, PipelineParallelism())
    complete = {
        name: (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().float()
        for name, parameter in named_parameters(parts)
    }
    model.load_state_dict(complete, strict=False, assign=True)
    model.tie()
    assert not any(parameter.is_meta for parameter in model.parameters()), "the parts hold the entire model"
    model.set_positions(0, config.trainer.data.sequence_length, device)
    return model.eval()


def trained_parameters(parts: Sequence[nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """Return those of the `named_parameters` that are trained: all, or only adapters."""
    return [(name, parameter) for name, parameter in named_parameters(parts) if parameter.requires_grad]


def parameter_count(config: RunConfig, samples: Samples, *, trained: bool = False) -> int:
    """Return the number of scalars of the whole model, or only of those that are trained."""
    undivided = PipelineParallelism()
    parameters = _build_stage(config, samples, 0, undivided).parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not trained)


def _build_stage(config: RunConfig, samples: Samples, stage: int, pipeline: PipelineParallelism | None = None) -> Model:
    """Return one stage of the model, without memory for its parameters."""
    table = samples if isinstance(samples, Table) else None
    shape = DataShape(
        vocabulary=config.vocabulary,
        sequence_length=config.trainer.data.sequence_length,
        features=None if table is None else table.width,
        classes=None if table is None else table.class_count,
    )
    layers = layers_of_stage(pipeline or config.parallelism.pipeline, config.family.layers(config.model), stage)
    family, lora = FAMILIES[config.model.name], config.trainer.model.lora
    with torch.device("meta"):
        part = family.build(config.model, shape, layers)
        if lora is not None:
            # What is not trained is held in the type in which it is computed with: nothing is lost by small updates.
            half = torch.bfloat16 if config.trainer.precision == "bfloat16" else None
            apply_lora(part, family.plan(part).layers(), lora, frozen=half)
            part.tie()
    return part


def _divide(plan: ParallelPlan, mesh: RankMesh) -> None:
    """Divide matrices, sequences and experts among the ranks of their axes.

    Raises:
        ConfigError: a custom model has nothing that an axis divides.
    """
    if mesh.sizes.tensor > 1 and not plan.tensor_plan():
        raise ConfigError(
            "spec.parallelism.tensor: the model of spec.trainer.module has no tensor plan; remove it, or let its "
            "ParallelPlan have one"
        )
    if mesh.sizes.context > 1 and not plan.attentions():
        raise ConfigError(
            "spec.parallelism.context: the model of spec.trainer.module names no attention layers; remove it, or let "
            "its ParallelPlan name them"
        )
    if mesh.sizes.tensor > 1:
        apply_tensor_parallel(plan, mesh["tensor"])
    if mesh.sizes.context > 1:
        apply_context_parallel(plan, mesh.group("context"))
    if mesh.sizes.expert > 1:
        apply_expert_parallel(plan, mesh["expert"])


def _set_batch_tokens(plan: ParallelPlan, config: RunConfig) -> None:
    for balance in plan.load_balances():
        assert config.trainer.batch.global_ is not None, "admission refuses such a model with a step over all samples"
        balance.batch_tokens = config.trainer.batch.global_ * config.tokens_per_sample


def data_parallel_wrapper(config: RunConfig, mesh: RankMesh) -> Literal["none", "ddp", "fully_shard"]:
    """Return what casts the parameters of this rank, and reduces their gradients."""
    # Rule 1: with a parameter server each worker holds the model as it is, and sends it as one vector.
    if config.servers:
        return "none"
    # Rule 2: gradients of single samples are clipped before they are reduced.
    if config.trainer.privacy is not None:
        return "none"
    # Rule 3: bfloat16 is fully_shard's, on a single rank, too. It casts parameters and inputs of a block once, so that
    # everything inside is bfloat16, whereas autocast casts each operation and keeps a float32 residual stream.
    if config.trainer.precision == "bfloat16":
        return "fully_shard"
    # Rule 4: one rank has nothing to reduce.
    if mesh.sizes.size == 1:
        return "none"
    # Rule 5: replicas are DistributedDataParallel's, whose buckets are the fastest. It averages gradients, and so would
    # scale an auxiliary loss inside a layer wrongly.
    if mesh.is_plain and not config.family.auxiliary_loss:
        return "ddp"
    # Rule 6: everything else is sharded, if several ranks hold the same part of the model.
    return "fully_shard" if mesh.parameters.size() > 1 else "none"


def apply_ddp(part: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Replicate all parameters; gradients are averaged while the backward pass runs (Li et al., 2020)."""
    return DistributedDataParallel(
        part,
        device_ids=[device] if device.type == "cuda" else None,
        # All ranks fill the parameters with the same values later.
        init_sync=False,
        gradient_as_bucket_view=True,
    )


def apply_fsdp(part: nn.Module, plan: ParallelPlan, mesh: RankMesh, precision: str) -> None:
    """Shard parameters, gradients and optimizer state, block by block (FSDP2; ZeRO, Rajbhandari et al., 2020).

    With a shard axis of 1 this is plain data parallelism of models that are divided in other ways, too.
    """
    # In a pipeline a block is used once per micro-batch, and to gather it each time would cost more than it saves.
    reshard = mesh.sizes.pipeline == 1
    policy = MixedPrecisionPolicy()
    if precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    ignored = _shard_experts(plan, mesh, policy, reshard)
    for block in plan.layers():
        _fully_shard(block, mesh.parameters, policy, reshard, ignored)
    _shard_ends(plan, mesh.parameters, policy, reshard)
    # What is left is used at the end as well as at the beginning, or is the entire model.
    _fully_shard(part, mesh.parameters, policy, reshard=False, ignored=ignored)
    for module in part.modules():
        if isinstance(module, FSDPModule):
            # Gradients are summed: the loss is divided by the tokens of the global batch already.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _shard_experts(
    plan: ParallelPlan, mesh: RankMesh, policy: MixedPrecisionPolicy, reshard: bool
) -> set[nn.Parameter]:
    """Shard those experts that cannot be sharded with their block, and return the experts that are not sharded."""
    half, divided = policy.param_dtype is not None, mesh.sizes.expert > 1
    own = mesh.experts if divided else mesh.parameters
    if half and own.device_type == "cpu":
        # On a CPU bfloat16 is no faster, and oneDNN would make and keep kernels for each number of rows, which changes
        # for each expert and step: 100 MB per step for four small layers.
        policy = MixedPrecisionPolicy(param_dtype=torch.float32, output_dtype=policy.param_dtype)
    elif not divided:
        return set()
    # Experts that ranks divide are sharded over another mesh, or not at all if it has one rank.
    if not half and own.size() == 1:
        return {parameter for experts in plan.experts() for parameter in experts.parameters()}
    for experts in plan.experts():
        _fully_shard(experts, own, policy, reshard)
    return set()


def _shard_ends(plan: ParallelPlan, mesh: DeviceMesh, policy: MixedPrecisionPolicy, reshard: bool) -> None:
    """Shard what stands before and behind the blocks, in two units, so that it is gathered only while it is used.

    The head is gathered once per micro-batch: its backward pass follows its forward pass at once. So is the embedding,
    whose gradient does not depend on its values.
    """
    embedding, head = plan.embedding(), list(plan.head())
    shared = {parameter for module in head for parameter in module.parameters()}
    if embedding is not None and shared.isdisjoint(embedding.parameters()):
        _fully_shard(embedding, mesh, policy, reshard)
        cast(FSDPModule, embedding).set_unshard_in_backward(False)
    elif embedding is not None:
        # They share a matrix.
        head.insert(0, embedding)
    if head:
        _fully_shard(head, mesh, policy, reshard=False)


def shard_dim(shape: torch.Size, ranks: int) -> int:
    """Return the dimension along which a parameter is sharded over a number of ranks.

    A stack of fewer experts than ranks is sharded through its matrices, so that no rank is left without a part.
    """
    return 1 if len(shape) == STACK_DIMS and shape[0] % ranks and shape[1] % ranks == 0 else 0


def _fully_shard(
    modules: nn.Module | list[nn.Module],
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy,
    reshard: bool,
    ignored: set[nn.Parameter] | None = None,
) -> None:
    """Shard the parameters of modules as one unit, except those that are sharded already and those that are ignored."""
    ranks = mesh.size(mesh.ndim - 1)

    def placement(parameter: nn.Parameter) -> Shard:
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        return Shard(shard_dim(local.shape, ranks))

    fully_shard(
        modules,
        mesh=mesh,
        mp_policy=policy,
        reshard_after_forward=reshard,
        shard_placement_fn=placement,
        ignored_params=ignored,
    )
