"""What must hold between the fields of a spec, for the API server and for `trainyard.admission` alike (CEL)."""

from trainyard.resource.base import Rule
from trainyard.resource.cel import (
    CONTEXT,
    EXPERT,
    IF_GPT,
    IF_MOE,
    MODEL_PARALLEL,
    NO_V,
    SERVES,
    STAGES,
    TENSOR,
    TWO_STAGES,
    Layout,
)
from trainyard.resource.elastic import ELASTIC_RULES
from trainyard.resource.models import size_in_cel

_LAYOUT = Layout("self.workers.replicas")

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
        f"!has(self.server) || {SERVES}",
        "spec.server: is only for spec.parallelism.data.mode parameterServer; remove it, or set that mode",
    ),
    Rule(
        f"!({SERVES}) || ({MODEL_PARALLEL} * {EXPERT} == 1"
        " && (!has(self.trainer) || self.trainer.model.name != 'moe'))",
        "spec.parallelism.data.mode: parameterServer is for a gpt or mlp that each worker holds whole; remove "
        "tensor, context, expert and pipeline, or choose ddp, fsdp or hsdp",
    ),
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
    Rule(
        f"{EXPERT} == 1 || !has(self.trainer) || self.trainer.model.name == 'moe'",
        "spec.parallelism.expert: only a moe has experts; remove it, or set spec.trainer.model.name: moe",
    ),
    Rule(
        f"{IF_MOE} {size_in_cel('experts')} % {EXPERT} == 0",
        "spec.parallelism.expert: must divide the model's experts, since each rank holds equally many; lower it, "
        "or change spec.trainer.model.experts",
    ),
    Rule(
        f"{IF_MOE} {size_in_cel('expertsPerToken')} <= {size_in_cel('experts')}",
        "spec.trainer.model.expertsPerToken: must be at most the model's experts; lower it, or raise "
        "spec.trainer.model.experts",
    ),
    Rule(
        f"{TENSOR} == 1 || !has(self.trainer) || self.trainer.model.name != 'moe'",
        "spec.parallelism.tensor: does not split the experts of a moe; remove it, and set spec.parallelism.expert "
        "instead, which does",
    ),
    Rule(
        "!has(self.health) || !has(self.health.straggler) || self.health.straggler.action != 'Replace'"
        " || has(self.checkpoint)",
        "spec.health.straggler.action: Replace starts the group anew, and without checkpoints from the first step; "
        "add spec.checkpoint, or choose Report",
    ),
    Rule(
        "!has(self.health) || self.health.nonFinite.action != 'Rollback' || has(self.checkpoint)",
        "spec.health.nonFinite.action: Rollback goes back to a checkpoint, but none are written; add "
        "spec.checkpoint, or choose Skip",
    ),
    Rule(
        "!has(self.trainer) || !(self.trainer.tensorboard || has(self.trainer.profile)) || has(self.checkpoint)",
        "spec.trainer: tensorboard and profile write to the checkpoint volume; add spec.checkpoint, or remove them",
    ),
    Rule(
        f"!has(self.trainer) || !has(self.trainer.profile) ||"
        f" self.trainer.profile.ranks.all(rank, rank < {_LAYOUT.world})",
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
    Rule(
        f"{IF_GPT} ({size_in_cel('heads')} % ({TENSOR} * {CONTEXT}) == 0 &&"
        f" {size_in_cel('kvHeads')} % ({TENSOR} * {CONTEXT}) == 0)",
        "spec.parallelism: tensor x context must divide the model's heads and kvHeads, since each rank computes "
        "whole heads; lower one of them, or choose another spec.trainer.model.heads or kvHeads",
    ),
    Rule(
        f"{IF_GPT} {size_in_cel('ffnDim')} % {TENSOR} == 0",
        "spec.parallelism.tensor: must divide the model's ffnDim; lower it, or change spec.trainer.model.ffnDim",
    ),
    Rule(
        f"{IF_GPT} (self.trainer.data.tokenizer == 'byte' ? 256 : self.trainer.data.vocabSize) % {TENSOR} == 0",
        "spec.parallelism.tensor: must divide the vocabulary (256 for bytes, else spec.trainer.data.vocabSize); "
        "lower it, or change the vocabulary",
    ),
    Rule(
        f"{IF_GPT} self.trainer.data.sequenceLength % ({TENSOR} * {CONTEXT}) == 0",
        "spec.trainer.data.sequenceLength: must be a multiple of tensor x context, which split the sequence; "
        "change it or the axes",
    ),
    Rule(
        f"{IF_GPT} {size_in_cel('layers')} >= {STAGES} * (has(self.parallelism) &&"
        f" self.parallelism.pipeline.schedule in {TWO_STAGES} && self.parallelism.pipeline.stages > 1"
        " ? 2 : 1)",
        "spec.parallelism.pipeline.stages: each stage needs a layer, and with Interleaved1F1B and ZBV each rank "
        "has two stages; use fewer stages, another schedule, or more layers",
    ),
    Rule(
        f"!has(self.trainer) || self.trainer.data.heldOut == 0.0 || {NO_V}",
        "spec.parallelism.pipeline.schedule: ZBV cannot evaluate (torch 2.15 has no forward pass alone for it); "
        "choose Interleaved1F1B, or remove spec.trainer.data.heldOut",
    ),
    Rule(
        f"!has(self.trainer) || self.trainer.activationCheckpointing != 'selective' || {NO_V}",
        "spec.trainer.activationCheckpointing: selective does not work with ZBV, whose backward pass has two "
        "parts; choose full, none, or another spec.parallelism.pipeline.schedule",
    ),
    Rule(
        f"!has(self.trainer) || !self.trainer.compile || ({TENSOR} * {CONTEXT} == 1 && ({NO_V}))",
        "spec.trainer.compile: does not work with tensor, context or the schedule ZBV (torch 2.15 cannot "
        "differentiate the compiled blocks then); remove it, or choose another layout",
    ),
    Rule(
        f"!has(self.trainer) || self.trainer.model.name != 'mlp' || {MODEL_PARALLEL} == 1",
        "spec.parallelism: an mlp is too small to split, only data parallelism has a use; remove tensor, context "
        "and pipeline, or train a gpt",
    ),
    *ELASTIC_RULES,
)
