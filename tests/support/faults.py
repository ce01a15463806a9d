"""Invalid manifests: one table for local admission and for a real API server."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from tests.builders import make_manifest, trainer_spec
from trainyard.resource.urls import SECRET_VARIABLES
from trainyard.text import listed

Manifest = dict[str, Any]


class Fault(NamedTuple):
    """A manifest with one fault."""

    name: str
    manifest: Callable[[], Manifest]
    message: str
    """Message of `trainyard.admission`."""
    server: str | None = None
    """Part of the API server's message; None: the same message, since it comes from one of our CEL rules."""
    strict: bool = False
    """Whether the API server refuses it only with strict field validation (the default of kubectl)."""


_URL = (
    "a URL must be s3://BUCKET/NAME, gs://BUCKET/NAME or az://CONTAINER/NAME without credentials, which belong into a "
    "Secret (workers.template, env or envFrom); correct it"
)
_SECRET_URL = "s3://key:secret@bucket/data"
_FILE_TOKENIZER = {"source": "text", "path": "/d", "tokenizer": "file", "vocabSize": 512, "tokenizerFile": "/t.json"}


_CHECKPOINT: Manifest = {"volume": {"persistentVolumeClaim": {"claimName": "shared"}}}


def _trainer(**changes: Any) -> Manifest:
    return make_manifest(trainer=trainer_spec(**changes))


def _custom(**changes: Any) -> Manifest:
    return _trainer(**{"model": {"name": "custom"}, "module": "plugin:build", **changes})


def _with_checkpoints(manifest: Manifest) -> Manifest:
    manifest["spec"]["checkpoint"] = _CHECKPOINT
    return manifest


def _model(**sizes: Any) -> Manifest:
    return _trainer(model={"name": "llama", "preset": "nano", **sizes})


def _without(manifest: Manifest, *path: str) -> Manifest:
    node = manifest
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    return manifest


def _parallel(replicas: int = 2, trainer: Manifest | None = None, **parallelism: Any) -> Manifest:
    return make_manifest(replicas=replicas, trainer=trainer_spec(**(trainer or {})), parallelism=parallelism)


_ASYNC_TENSOR = (
    "spec.parallelism.asyncTensor: needs a tensor group of GPUs of one worker (tensor must divide "
    "workers.procsPerWorker), and spec.trainer.compile, which overlaps their communication; set them, or remove it"
)
_ADAPTED = {"name": "llama", "preset": "nano", "from": {"path": "/base"}, "lora": {}}
_FLOAT8 = {"float8": True, "precision": "bfloat16", "compile": True}


def _on_gpus(manifest: Manifest, gpus: int = 1) -> Manifest:
    """Give each worker GPUs, and a process for each."""
    manifest["spec"]["workers"] |= {"resources": {"limits": {"nvidia.com/gpu": gpus}}, "procsPerWorker": gpus}
    return manifest


def _with_limits(limits: Manifest, trainer: Manifest | None = None, **workers: Any) -> Manifest:
    return make_manifest(trainer=trainer, workers={"resources": {"limits": limits}, **workers})


def _digits_spec(**changes: Any) -> Manifest:
    data = {"source": "table", "builtin": "digits"}
    return trainer_spec(**{"model": {"name": "mlp"}, "data": data, **changes})


def _digits(**changes: Any) -> Manifest:
    return make_manifest(trainer=_digits_spec(**changes))


def _private(trainer: Manifest | None = None, **spec: Any) -> Manifest:
    """A private llama; None in place of a part of the spec removes it."""
    private = trainer_spec(**{"privacy": {"epsilon": 3, "delta": 1e-6}, **(trainer or {})})
    parts: Manifest = {"checkpoint": _CHECKPOINT, **spec}
    return make_manifest(trainer=private, **{name: part for name, part in parts.items() if part is not None})


_OWN_VOLUMES = (
    "spec.checkpoint.volume: emptyDir and ephemeral give each pod a volume of its own, so that no checkpoint of "
    "several pods would be complete; set spec.checkpoint.claim, url, or a volume that all pods share"
)
_WHOLE_PARAMETERS = (
    "spec.trainer.privacy: needs all parameters on each rank, since the norm of one sample's gradient is over all of "
    "them; set spec.parallelism.data.mode: ddp, and remove tensor, context, expert and pipeline"
)
_SAMPLE_GRADIENTS = (
    "spec.trainer.privacy: gradients of single samples are computed by hooks of the layers, which compiled and "
    "recomputed blocks do not run once; remove spec.trainer.compile and activationCheckpointing"
)


def _digits_with(model: Manifest) -> Manifest:
    return _digits(model=model)


def _source(**changes: Any) -> Manifest:
    return {"name": "web", "source": "text", "path": "/data", **changes}


def _moe(replicas: int = 2, parallelism: Manifest | None = None, **sizes: Any) -> Manifest:
    model = {"name": "moe", "preset": "nano", **sizes}
    return make_manifest(replicas=replicas, trainer=trainer_spec(model=model), parallelism=parallelism or {})


def _only_for(field: str, *models: str) -> str:
    return (
        f"spec.trainer.model.{field}: is for {' and '.join(models)} only; remove it, or set "
        f"spec.trainer.model.name: {' or '.join(models)}"
    )


_BATCH = (
    "spec.trainer.batch.global: must be a multiple of the number of data-parallel ranks (workers.replicas x "
    "workers.procsPerWorker / (tensor x context x pipeline.stages)); change the batch or the number of workers"
)

_BATCH_OR_GD = (
    "spec.trainer.batch.global: every optimizer needs it except gd, whose steps are over all samples; add it, or with "
    "gd remove it"
)

_ENTIRE_MODEL = (
    "spec.parallelism.data.mode: parameterServer needs the entire model on each rank; remove tensor, context, expert "
    "and pipeline, or choose ddp, fsdp or hsdp"
)
_TOO_SMALL = "an mlp is too small to split"
_COMPILE = (
    "spec.trainer.compile: does not work with the schedule ZBV, which divides the backward pass of a block, while a "
    "compiled one is indivisible; remove it, or choose another spec.parallelism.pipeline.schedule"
)
_SHARD = (
    "spec.parallelism.data.shard: must divide the number of data-parallel ranks (world size / (tensor x context x "
    "pipeline.stages)) over expert; choose a divisor"
)
_LLAMAS = (
    *("nano", "tiny", "small", "medium", "1b", "8b", "70b", "llama3-8b", "llama3-70b"),
    *("llama3.1-8b", "llama3.1-70b", "llama3.1-405b", "llama3.2-1b", "llama3.2-3b"),
    *("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b"),
)
_MOES = ("8x7b", "8x22b", "mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "qwen3-235b-a22b")
_PRESET = (
    f"spec.trainer.model.preset: llama has {', '.join(_LLAMAS)}, and moe has nano, tiny, small, medium, "
    f"{', '.join(_MOES)}; choose one of them, or another spec.trainer.model.name"
)

_ONE_CONDITION = (
    "spec.restartPolicy.rules: each rule must have exactly one of onExitCodes and onReasons; add one, or split it into "
    "two rules"
)

_ELASTIC_LAYOUT = (
    "spec.elastic.minReplicas: the layout must be possible with that many workers, too: tensor x context x "
    "pipeline.stages must divide minReplicas x procsPerWorker, batch.global must be a multiple of the data-parallel "
    "ranks (with batch.micro or a pipeline: of their micro-batches), and expert and data.shard must divide them; "
    "choose another minReplicas, or change the batch or spec.parallelism"
)


def _elastic(least: int = 1, replicas: int = 4, trainer: Manifest | None = None, **spec: Any) -> Manifest:
    elastic = {"minReplicas": least, **spec.pop("elastic", {})}
    settings: Manifest = {"checkpoint": {"claim": {"size": "1Gi"}}, "trainer": trainer or trainer_spec(), **spec}
    return make_manifest(replicas=replicas, elastic=elastic, **settings)


def _elastic_batch(least: int, replicas: int, batch: Manifest, **parallelism: Any) -> Manifest:
    return _elastic(least, replicas, trainer_spec(batch=batch), parallelism=parallelism)


_ELASTIC_NEEDS = (
    "spec.elastic: needs spec.trainer and spec.checkpoint, since each new size resumes from a checkpoint; add both, or "
    "remove it"
)

RULES = (
    Fault("no batch size", lambda: _trainer(batch={}), _BATCH_OR_GD),
    Fault("a batch of gradient descent", lambda: _trainer(optimizer={"name": "gd"}), _BATCH_OR_GD),
    Fault(
        "neither command nor trainer",
        lambda: _without(make_manifest(), "spec", "command"),
        "spec: exactly one of command (your own program) and trainer (the built-in one) must be given; "
        "add one or remove the other",
    ),
    Fault(
        "an empty spec",
        lambda: {**make_manifest(), "spec": {}},
        "spec: exactly one of command (your own program) and trainer (the built-in one) must be given; "
        "add one or remove the other",
    ),
    Fault(
        "both command and trainer",
        lambda: make_manifest(trainer=trainer_spec(), command=["train"], image="x"),
        "spec: exactly one of command (your own program) and trainer (the built-in one) must be given; "
        "add one or remove the other",
    ),
    Fault(
        "args with the trainer",
        lambda: make_manifest(trainer=trainer_spec(), args=["--fast"]),
        "spec.args: needs spec.command; the built-in trainer takes no arguments, set its fields in spec.trainer",
    ),
    Fault(
        "command without an image",
        lambda: _without(make_manifest(), "spec", "image"),
        "spec.image: is required with spec.command; name the image that holds your program",
    ),
    Fault(
        "batch that the replicas do not divide",
        lambda: make_manifest(replicas=3, trainer=trainer_spec()),
        _BATCH,
    ),
    Fault(
        "batch that the processes do not divide",
        lambda: make_manifest(workers={"procsPerWorker": 3}, trainer=trainer_spec()),
        _BATCH,
    ),
    Fault(
        "batch that the GPUs do not divide",
        lambda: make_manifest(
            workers={"resources": {"limits": {"nvidia.com/gpu": 3}}},
            trainer=trainer_spec(),
        ),
        _BATCH,
    ),
    Fault(
        "micro-batch that does not divide the share of a rank",
        lambda: _trainer(batch={"global": 16, "micro": 3}),
        "spec.trainer.batch.micro: the share of one rank (batch.global / data-parallel ranks) must be a multiple "
        "of it; choose a divisor, or auto",
    ),
    Fault(
        "replacing stragglers without checkpoints",
        lambda: make_manifest(trainer=trainer_spec(), health={"straggler": {"action": "Replace"}}),
        "spec.health.straggler.action: Replace restarts the group, and without checkpoints from the first step; "
        "add spec.checkpoint, or choose Report",
    ),
    Fault(
        "a rollback without checkpoints",
        lambda: make_manifest(trainer=trainer_spec(), health={"badSteps": {"action": "Rollback"}}),
        "spec.health.badSteps.action: Rollback goes back to a checkpoint, but none are written; add "
        "spec.checkpoint, or choose Skip",
    ),
    *(
        Fault(
            f"a hang timeout of {value}",
            partial(make_manifest, trainer=trainer_spec(), health={"hangTimeoutSeconds": value}),
            f"spec.health.hangTimeoutSeconds: must be {rule} or must be 'auto', not {value!r}",
            server="spec.health.hangTimeoutSeconds: must be auto or a whole number from 1 to 86400; correct it",
        )
        for value, rule in (("long", "a whole number"), (0, "at least 1"), (86_401, "at most 86400"))
    ),
    Fault(
        "parallelism of a user program",
        lambda: make_manifest(parallelism={"tensor": 2}),
        "spec.parallelism: needs spec.trainer; a program of your own lays out its ranks by itself",
    ),
    Fault(
        "axes that do not divide the world size",
        lambda: _parallel(tensor=2, pipeline={"stages": 2}),
        "spec.parallelism: tensor x context x pipeline.stages must divide the world size (workers.replicas x "
        "workers.procsPerWorker); change an axis or the number of workers",
    ),
    Fault(
        "a batch that the data-parallel ranks do not divide",
        lambda: _parallel(6, tensor=2),
        _BATCH,
    ),
    Fault(
        "a group of another mode than hsdp",
        lambda: _parallel(data={"mode": "fsdp", "shard": 2}),
        "spec.parallelism.data.shard: is only for mode hsdp (fsdp shards over all ranks, ddp over none); remove "
        "it, or set mode: hsdp",
    ),
    Fault(
        "a group that does not divide the data-parallel ranks",
        lambda: _parallel(8, tensor=2, data={"mode": "hsdp", "shard": 3}),
        _SHARD,
    ),
    Fault(
        "a group that does not divide the data-parallel ranks with the same experts",
        lambda: _moe(8, {"expert": 4, "data": {"mode": "hsdp", "shard": 4}}),
        _SHARD,
    ),
    Fault(
        "experts that do not divide the data-parallel ranks",
        lambda: _moe(8, {"expert": 4, "pipeline": {"stages": 4}}),
        "spec.parallelism.expert: must divide the number of data-parallel ranks (world size / (tensor x context x "
        "pipeline.stages)), which hold the experts together; choose a divisor, or change the number of workers",
    ),
    Fault(
        "experts of a llama",
        lambda: _parallel(expert=2),
        "spec.parallelism.expert: is for moe only (other models have no experts; only the workers know the blocks and "
        "experts of a custom model); remove it, or set spec.trainer.model.name: moe",
    ),
    Fault(
        "ranks that do not divide the experts",
        lambda: _moe(4, {"expert": 4}, experts=6),
        "spec.parallelism.expert: must divide the model's experts, since each rank holds equally many; lower it, or "
        "change spec.trainer.model.experts",
    ),
    Fault(
        "more experts per token than there are",
        lambda: _moe(expertsPerToken=9),
        "spec.trainer.model.expertsPerToken: must be at most the model's experts; lower it, or raise "
        "spec.trainer.model.experts",
    ),
    Fault(
        "tensor parallelism of a moe",
        lambda: _moe(parallelism={"tensor": 2}),
        "spec.parallelism.tensor: is for llama and custom only (the experts of a moe are split by "
        "spec.parallelism.expert; an mlp is too small to split); remove it, or set spec.trainer.model.name: llama or "
        "custom",
    ),
    Fault("a preset of a llama for a moe", lambda: _moe(preset="8b"), _PRESET),
    Fault("a preset of a moe for a llama", lambda: _model(preset="8x7b"), _PRESET),
    Fault(
        "experts of a width that is not a multiple of 8",
        lambda: _moe(ffnDim=100),
        "spec.trainer.model: dim and ffnDim of a moe must be multiples of 8, which the grouped matrix product of all "
        "experts needs; change them",
    ),
    Fault(
        "fewer micro-batches than stages",
        lambda: _parallel(2, {"batch": {"global": 16, "micro": 16}}, pipeline={"stages": 2}),
        "spec.trainer.batch: a pipeline needs a multiple of its stages as micro-batches per step (batch.global / "
        "data-parallel ranks / batch.micro); change the batch or spec.parallelism.pipeline.stages",
    ),
    Fault(
        "tensor and context that do not divide the heads",
        lambda: _parallel(8, tensor=4, context=2),
        "spec.parallelism: tensor x context must divide the model's heads and kvHeads, since each rank computes "
        "whole heads; lower one of them, or choose another spec.trainer.model.heads or kvHeads",
    ),
    Fault(
        "tensor that divides the heads but not kvHeads",
        lambda: _parallel(4, {"model": {"name": "llama", "preset": "nano", "heads": 8, "kvHeads": 2}}, tensor=4),
        "spec.parallelism: tensor x context must divide the model's heads and kvHeads, since each rank computes "
        "whole heads; lower one of them, or choose another spec.trainer.model.heads or kvHeads",
    ),
    Fault(
        "tensor that does not divide the feed-forward width",
        lambda: _parallel(4, {"model": {"name": "llama", "preset": "nano", "ffnDim": 386}}, tensor=4),
        "spec.parallelism.tensor: must divide the model's ffnDim; lower it, or change spec.trainer.model.ffnDim",
    ),
    Fault(
        "tensor that does not divide the vocabulary",
        lambda: _parallel(
            2, {"data": {"source": "text", "builtin": "python-stdlib", "tokenizer": "bpe", "vocabSize": 4095}}, tensor=2
        ),
        "spec.parallelism.tensor: must divide the vocabulary (256 for bytes, else spec.trainer.data.vocabSize); "
        "lower it, or change the vocabulary",
    ),
    Fault(
        "a sequence that tensor and context do not divide",
        lambda: _parallel(
            4, {"data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": 126}}, tensor=2, context=2
        ),
        "spec.trainer.data.sequenceLength: must be a multiple of tensor x context, which split the sequence; "
        "change it or the axes",
    ),
    Fault(
        "more stages than layers",
        lambda: _parallel(4, {"batch": {"global": 64}}, pipeline={"stages": 4, "schedule": "ZBV"}),
        "spec.parallelism.pipeline.stages: each stage needs a layer, and with Interleaved1F1B and ZBV each rank "
        "has two stages; use fewer stages, another schedule, or more layers",
    ),
    *(
        Fault(
            f"batch.micro of {value}",
            partial(_trainer, batch={"global": 16, "micro": value}),
            f"spec.trainer.batch.micro: must be {rule} or must be 'auto', not {value!r}",
            server="spec.trainer.batch.micro: must be auto or a whole number from 1 to 2147483647; correct it",
        )
        for value, rule in (("abc", "a whole number"), (-4, "at least 1"), ("4", "a whole number"))
    ),
    Fault(
        "data.shard that is a word",
        lambda: make_manifest(trainer=trainer_spec(), parallelism={"data": {"mode": "hsdp", "shard": "foo"}}),
        "spec.parallelism.data.shard: must be a whole number or must be 'auto', not 'foo'",
        server="spec.parallelism.data.shard: must be auto or a whole number from 1 to 65536; correct it",
    ),
    *(
        Fault(
            f"{value!r} GPUs",
            partial(
                make_manifest, trainer=trainer_spec(), workers={"resources": {"limits": {"nvidia.com/gpu": value}}}
            ),
            "spec.workers.resources.limits: the number of GPUs or other accelerators must be a whole number below "
            "1000; correct it, without a unit",
        )
        for value in ("1.5", "2k", "1Gi", "1000", 1000, 10**15)
    ),
    Fault(
        "half a MIG device",
        lambda: _with_limits({"nvidia.com/mig-1g.5gb": "500m"}),
        "spec.workers.resources.limits: the number of GPUs or other accelerators must be a whole number below "
        "1000; correct it, without a unit",
    ),
    Fault(
        "two kinds of accelerators",
        lambda: _with_limits({"nvidia.com/mig-1g.5gb": 1, "nvidia.com/mig-2g.10gb": 1}),
        "spec.workers.procsPerWorker: auto is the number of devices of one kind, but workers.resources.limits has more "
        "than one kind; set it to the number of processes in each worker",
    ),
    *(
        Fault(
            f"the unknown device {device}",
            partial(_with_limits, {device: 4, "memory": "8Gi", "rdma/hca": 1}),
            "spec.workers.procsPerWorker: auto does not know which devices in workers.resources.limits need a process "
            "of their own; set it to the number of processes in each worker",
        )
        for device in ("example.com/npu", "google.com/tpu", "aws.amazon.com/neuron")
    ),
    *(
        Fault(
            f"the built-in trainer on {device}",
            partial(_with_limits, {device: 1}, trainer=trainer_spec(), procsPerWorker=procs),
            "spec.trainer: computes on GPUs of NVIDIA and AMD and on CPUs, and not on other accelerators in "
            "spec.workers.resources.limits; remove them, or run a program of your own with spec.command",
        )
        for device, procs in (("habana.ai/gaudi", "auto"), ("google.com/tpu", 4))
    ),
    Fault(
        "the built-in trainer on an unknown device",
        partial(_with_limits, {"example.com/npu": 1}, trainer=trainer_spec()),
        "spec.trainer: computes on GPUs of NVIDIA and AMD and on CPUs, and does not know whether another resource in "
        "spec.workers.resources.limits is an accelerator; remove it, or set spec.workers.procsPerWorker to the number "
        "of processes in each worker, which then compute on CPUs",
    ),
    *(
        Fault(
            f"{number} MIG devices and {procs} processes of the built-in trainer",
            partial(_with_limits, {"nvidia.com/mig-3g.40gb": number}, trainer=trainer_spec(), procsPerWorker=procs),
            "spec.workers.resources.limits: CUDA shows a process only one MIG device, so that a worker of the built-in "
            "trainer has one process and one device; set 1 and procsPerWorker: auto, and raise workers.replicas",
        )
        for number, procs in ((2, "auto"), (1, 2))
    ),
    Fault(
        "procsPerWorker that is a word",
        lambda: make_manifest(workers={"procsPerWorker": "many"}),
        "spec.workers.procsPerWorker: must be a whole number or must be 'auto', not 'many'",
        server="spec.workers.procsPerWorker: must be auto or a whole number from 1 to 64; correct it",
    ),
    Fault(
        "procsPerWorker above the limit",
        lambda: make_manifest(workers={"procsPerWorker": 65}),
        "spec.workers.procsPerWorker: must be at most 64 or must be 'auto', not 65",
        server="spec.workers.procsPerWorker: must be auto or a whole number from 1 to 64; correct it",
    ),
    Fault(
        "gpuMemory of workers without GPUs",
        lambda: make_manifest(workers={"gpuMemory": "80Gi", "resources": {"limits": {"memory": "2Gi"}}}),
        "spec.workers.gpuMemory: needs workers with GPUs; set spec.workers.resources.limits[nvidia.com/gpu], or "
        "remove it",
    ),
    Fault(
        "float8 on GPUs of AMD",
        lambda: _with_limits({"amd.com/gpu": 1}, trainer=trainer_spec(**_FLOAT8)),
        "spec.trainer.float8: needs GPUs of NVIDIA (H100 or newer), since a CPU has no products in float8; set "
        "spec.workers.resources.limits[nvidia.com/gpu], or remove it",
    ),
    Fault(
        "width that the heads do not divide",
        lambda: _model(dim=100, heads=3),
        "spec.trainer.model.dim: must be a multiple of 2 x heads (rotary positions need heads of even "
        "width); change dim or heads",
    ),
    Fault(
        "heads that the key heads do not divide",
        lambda: _model(heads=4, kvHeads=3),
        "spec.trainer.model.heads: must be a multiple of kvHeads; change heads or kvHeads",
    ),
    Fault(
        "both path and builtin",
        lambda: _trainer(data={"source": "text", "builtin": "python-stdlib", "path": "/data"}),
        "spec.trainer.data: exactly one of path, builtin and sources must be given; remove one, or add one "
        "(builtin: python-stdlib and builtin: digits need no files)",
    ),
    Fault(
        "neither path nor builtin",
        lambda: _trainer(data={"source": "text"}),
        "spec.trainer.data: exactly one of path, builtin and sources must be given; remove one, or add one "
        "(builtin: python-stdlib and builtin: digits need no files)",
    ),
    Fault(
        "a decay rate of 1",
        lambda: _trainer(optimizer={"betas": [0.9, 1.0]}),
        "spec.trainer.optimizer.betas: each must lie in [0, 1); the usual ones are [0.9, 0.95]",
    ),
    Fault(
        "a warm-up longer than the training",
        lambda: _trainer(schedule={"warmupSteps": 101}),
        "spec.trainer.schedule: warmupSteps and decaySteps must not exceed spec.trainer.stop.steps; shorten them, "
        "or train longer",
    ),
    Fault(
        "a warm-up by tokens of a run by steps",
        lambda: _trainer(schedule={"warmupTokens": 1000}),
        "spec.trainer.schedule: warmupTokens and decayTokens are for runs that end by tokens or epochs; use "
        "warmupSteps and decaySteps, or spec.trainer.stop.tokens",
    ),
    Fault(
        "a warm-up by tokens and by steps",
        lambda: _trainer(schedule={"warmupTokens": 1000, "warmupSteps": 5}, stop={"tokens": 100_000}),
        "spec.trainer.schedule.warmupTokens: replaces warmupSteps; remove one of them",
    ),
    Fault(
        "a warm-up longer than the tokens",
        lambda: _trainer(schedule={"warmupTokens": 100_001}, stop={"tokens": 100_000}),
        "spec.trainer.schedule: warmupTokens and decayTokens must not exceed spec.trainer.stop.tokens; shorten "
        "them, or train longer",
    ),
    Fault(
        "a decay by tokens and by steps",
        lambda: _trainer(schedule={"name": "wsd", "decayTokens": 1000, "decaySteps": 10}, stop={"tokens": 100_000}),
        "spec.trainer.schedule.decayTokens: is for wsd only, and replaces decaySteps; remove one of them, or set "
        "spec.trainer.schedule.name: wsd",
    ),
    Fault(
        "a decay of a schedule that has none",
        lambda: _trainer(schedule={"name": "linear", "decaySteps": 10}),
        "spec.trainer.schedule.decaySteps: is for wsd only; remove it, or set spec.trainer.schedule.name: wsd",
    ),
    *(
        Fault(
            f"{size} for an mlp", partial(_digits_with, {"name": "mlp", size: value}), _only_for(size, "llama", "moe")
        )
        for size, value in (
            *(("preset", "nano"), ("dim", 2), ("layers", 2), ("heads", 2), ("kvHeads", 2), ("ffnDim", 2)),
            *(("headDim", 2), ("ropeTheta", 1e4), ("ropeScaling", {"type": "linear"})),
            *(("normEps", 1e-6), ("tiedEmbeddings", False), ("qkNorm", False)),
        )
    ),
    *(
        Fault(
            f"a custom {what} without a module",
            partial(_trainer, **{what: fields}),
            "spec.trainer.module: is required with model.name: custom and data.source: custom, which it brings; add "
            "it, or choose another model or source",
        )
        for what, fields in (("model", {"name": "custom"}), ("data", {"source": "custom", "path": "/data"}))
    ),
    Fault(
        "options without a module",
        lambda: _trainer(options={"width": "64"}),
        "spec.trainer.options: are for spec.trainer.module; add it, or remove them",
    ),
    Fault(
        "weights for a custom model",
        lambda: _custom(model={"name": "custom", "from": {"path": "/models/it"}}),
        "spec.trainer.model.from: is for llama, moe and mlp only; remove it, or set spec.trainer.model.name: llama, "
        "moe or mlp",
    ),
    Fault(
        "an export of a custom model",
        lambda: _with_checkpoints(_custom(export={})),
        "spec.trainer.export: is for llama, moe and mlp only, since other programs know no other model; remove it",
    ),
    Fault(
        "an export without checkpoints",
        lambda: _trainer(export={}),
        "spec.trainer.export: is made from the last checkpoint, so that no rank needs memory for the whole model; add "
        "spec.checkpoint, or remove it",
    ),
    Fault(
        "an odd width of a head",
        lambda: _model(headDim=33),
        "spec.trainer.model.headDim: must be even, since rotary positions rotate pairs; change it",
    ),
    Fault(
        "a tied head in a pipeline",
        lambda: _parallel(2, {"model": {"name": "llama", "preset": "qwen3-0.6b"}}, pipeline={"stages": 2}),
        "spec.trainer.model.tiedEmbeddings: does not work with a pipeline, whose first stage has the embedding and "
        "whose last one has the head; set it to false, or remove spec.parallelism.pipeline",
    ),
    *(
        Fault(
            f"{name} without the length before",
            partial(_model, ropeScaling={"type": name, "factor": 8}),
            "spec.trainer.model.ropeScaling.originalLength: llama3 and yarn need it; add the sequence length that the "
            "model was first trained on (Llama 3: 8192)",
        )
        for name in ("llama3", "yarn")
    ),
    Fault(
        "a limit of llama3 for linear scaling",
        lambda: _model(ropeScaling={"type": "linear", "factor": 8, "lowFreqFactor": 1}),
        "spec.trainer.model.ropeScaling: lowFreqFactor and highFreqFactor are for llama3 only; remove them, or set "
        "type: llama3",
    ),
    Fault(
        "a limit of yarn for llama3",
        lambda: _model(ropeScaling={"type": "llama3", "originalLength": 8192, "betaFast": 32}),
        "spec.trainer.model.ropeScaling: betaSlow and betaFast are for yarn only; remove them, or set type: yarn",
    ),
    Fault(
        "limits of llama3 in the wrong order",
        lambda: _model(ropeScaling={"type": "llama3", "originalLength": 8192, "lowFreqFactor": 4}),
        "spec.trainer.model.ropeScaling: lowFreqFactor must be below highFreqFactor, and betaSlow below betaFast; "
        "change one of them",
    ),
    *(
        Fault(f"{field} for a llama", partial(_model, **{field: value}), _only_for(field, "moe"))
        for field, value in (("experts", 8), ("expertsPerToken", 2), ("balanceLossWeight", 0.1))
    ),
    Fault("hidden layers for a llama", lambda: _model(hiddenSizes=[64]), _only_for("hiddenSizes", "mlp")),
    Fault(
        "an mlp that learns from text",
        lambda: _trainer(model={"name": "mlp"}),
        "spec.trainer.data.source: table is for mlp, all others are for llama, moe and custom; change "
        "spec.trainer.model.name or the data",
    ),
    Fault(
        "digits as text",
        lambda: _trainer(data={"source": "text", "builtin": "digits"}),
        "spec.trainer.data.builtin: python-stdlib is text and digits is a table; change builtin or source",
    ),
    *(
        Fault(name, partial(_trainer, data=data), message)
        for name, data, message in (
            (
                "neither a source nor sources",
                {"path": "/data"},
                "spec.trainer.data.source: is required, except with sources, each of which has its own; add or remove "
                "it",
            ),
            (
                "two sources of one name",
                {"sources": [_source(), _source(path="/other")]},
                "spec.trainer.data.sources: each needs a name of its own; rename one",
            ),
            (
                "a held-out fraction beside sources",
                {"sources": [_source()], "evalFraction": 0.1},
                "spec.trainer.data: field, split, tokenType, evalFraction and evalPath belong to each of sources; move "
                "them there",
            ),
            (
                "two ways to hold out samples",
                {"source": "text", "path": "/data", "evalFraction": 0.1, "evalPath": "/held-out"},
                "spec.trainer.data: evalFraction and evalPath are two ways to hold out samples; keep one of them",
            ),
            (
                "two ways to hold out samples of one of several sources",
                {"sources": [_source(evalFraction=0.1, evalPath="/held-out")]},
                "spec.trainer.data.sources: evalFraction and evalPath both hold out samples; keep one of them",
            ),
            (
                "held-out data beside builtin",
                {"source": "text", "builtin": "python-stdlib", "evalPath": "/held-out"},
                "spec.trainer.data.evalPath: needs path, and tokens or documents; remove it, or use evalFraction",
            ),
            (
                "a split of text",
                {"source": "text", "path": "/data", "split": "train"},
                "spec.trainer.data.split: is for source huggingface only; remove it",
            ),
            (
                "a split of text among several sources",
                {"sources": [_source(split="train")]},
                "spec.trainer.data.sources: split is for source huggingface only; remove it",
            ),
            (
                "a tokenizer file without its path",
                {"source": "text", "path": "/data", "tokenizer": "file", "vocabSize": 512},
                "spec.trainer.data.tokenizerFile: is required with tokenizer: file; add the path of a tokenizer.json",
            ),
            (
                "the path of a tokenizer that is not used",
                {"source": "text", "path": "/data", "tokenizerFile": "/tokenizer.json"},
                "spec.trainer.data.tokenizer: must be file with tokenizerFile; set it, or remove tokenizerFile",
            ),
            (
                "tokens without the size of their vocabulary",
                {"source": "tokens", "path": "/data"},
                "spec.trainer.data.vocabSize: is required with tokenizer: file and source: tokens; set it to the "
                "largest token id + 1 or more",
            ),
            (
                "a vocabulary too small to be learned",
                {"source": "text", "path": "/data", "tokenizer": "bpe", "vocabSize": 256},
                "spec.trainer.data.vocabSize: must be at least 512 with tokenizer: bpe, which begins with 256 bytes; "
                "raise it",
            ),
            (
                "an end token of bytes",
                {"source": "text", "path": "/data", "endToken": "</s>"},
                "spec.trainer.data.endToken: is for tokenizer: file only, the others have one of their own; remove it",
            ),
            (
                "an exclusion of nothing",
                {"source": "text", "path": "/data", "exclude": {}},
                "spec.trainer.data.exclude: needs samples or a file; add numbers of samples, or remove it",
            ),
            (
                "conversations among several sources",
                {"sources": [{"name": "a", "source": "chat", "path": "/data"}]},
                "spec.trainer.data.sources: conversations are not mixed with other sources; join their files in one "
                "folder, and set spec.trainer.data.source: chat",
            ),
            *(
                (
                    f"conversations with {field}: {value}",
                    {"source": "chat", "path": "/data", field: value},
                    "spec.trainer.data: source chat needs a tokenizer that exists (tokenizer: file, or byte), and "
                    "keeps conversations apart (documents: separated or isolated); change tokenizer or documents",
                )
                for field, value in (("tokenizer", "bpe"), ("documents", "joined"))
            ),
            *(
                (
                    f"a chat template for {source}",
                    {"source": source, "path": "/data", "chatTemplate": "/a"},
                    "spec.trainer.data.chatTemplate: is for source chat and tokenizer: file only; remove it",
                )
                for source in ("text", "chat")
            ),
            (
                "isolated tokens without the token that ends a document",
                {"source": "tokens", "path": "/data", "vocabSize": 512, "documents": "isolated"},
                "spec.trainer.data.endTokenId: is required with source: tokens and documents: isolated; set it to the "
                "id that ends a document",
            ),
        )
    ),
    Fault(
        "isolated rows of a table",
        lambda: _digits(data={"source": "table", "builtin": "digits", "documents": "isolated"}),
        "spec.trainer.data.documents: isolated is for llama and moe only, which have attention; remove it",
    ),
    Fault(
        "convergence without evaluations",
        lambda: _trainer(stop={"steps": 10, "converged": {"patience": 2}}),
        "spec.trainer.stop: targetLoss and converged are checked at evaluations; set "
        "spec.trainer.evaluation.everySteps and spec.trainer.data.evalFraction",
    ),
    Fault(
        "activation checkpointing of an mlp",
        lambda: _digits(activationCheckpointing="full"),
        "spec.trainer.activationCheckpointing: is for llama, moe and custom only (an mlp has no blocks); remove it, or "
        "set spec.trainer.model.name: llama, moe or custom",
    ),
    Fault(
        "evaluation without samples",
        lambda: _trainer(evaluation={"everySteps": 5}),
        "spec.trainer.evaluation: needs samples to evaluate on; set spec.trainer.data.evalFraction, for example to 0.1",
    ),
    Fault(
        "an evaluation of fewer samples than sources",
        lambda: _trainer(
            data={"sources": [_source(name=name, evalFraction=0.1) for name in ("web", "code")]},
            evaluation={"maxSamples": 1},
        ),
        "spec.trainer.evaluation.maxSamples: must be at least the number of spec.trainer.data.sources with "
        "held-out samples, since one of each is evaluated; raise it",
    ),
    Fault(
        "evaluation with the schedule ZBV",
        lambda: _parallel(
            2,
            {"data": {"source": "text", "builtin": "python-stdlib", "evalFraction": 0.1}},
            pipeline={"stages": 2, "schedule": "ZBV"},
        ),
        "spec.parallelism.pipeline.schedule: ZBV cannot evaluate (torch 2.15 has no forward pass alone for it); "
        "choose Interleaved1F1B, or remove evalFraction and evalPath from spec.trainer.data",
    ),
    Fault(
        "selective checkpointing with the schedule ZBV",
        lambda: _parallel(2, {"activationCheckpointing": "selective"}, pipeline={"stages": 2, "schedule": "ZBV"}),
        "spec.trainer.activationCheckpointing: selective does not work with ZBV, whose backward pass has two parts; "
        "choose full, none, or another spec.parallelism.pipeline.schedule",
    ),
    Fault(
        "a compiled mlp",
        lambda: _digits(compile=True),
        "spec.trainer.compile: is for llama and custom only (the route of a token through a moe is not known in "
        "advance; an mlp has no blocks); remove it, or set spec.trainer.model.name: llama or custom",
    ),
    Fault(
        "gradient descent of a moe",
        lambda: _trainer(model={"name": "moe", "preset": "nano"}, batch={}, optimizer={"name": "gd"}),
        "spec.trainer.optimizer.name: gd is for llama, mlp and custom only (the load of the experts is balanced over "
        "batches); choose another optimizer",
    ),
    Fault(
        "privacy of a moe",
        lambda: _private({"model": {"name": "moe", "preset": "nano"}}),
        "spec.trainer.privacy: is for llama and mlp only (which experts a token uses depends on other samples, by the "
        "loss that balances them; its layers may mix samples); remove it, or set spec.trainer.model.name: llama or mlp",
    ),
    Fault(
        "privacy with sharded parameters",
        lambda: _private(parallelism={"data": {"mode": "fsdp"}}),
        _WHOLE_PARAMETERS,
    ),
    Fault(
        "privacy at a parameter server",
        lambda: _private(parallelism={"data": {"mode": "parameterServer"}}),
        _WHOLE_PARAMETERS,
    ),
    Fault("privacy in a tensor group", lambda: _private(replicas=2, parallelism={"tensor": 2}), _WHOLE_PARAMETERS),
    Fault(
        "privacy without checkpoints",
        lambda: _private(checkpoint=None),
        "spec.trainer.privacy: needs spec.checkpoint, where the spent budget is recorded, so that a restart does not "
        "spend it twice; add it",
    ),
    Fault(
        "privacy with rollbacks",
        lambda: _private(health={"badSteps": {"action": "Rollback"}}),
        "spec.trainer.privacy: each step spends budget, also one that a rollback undoes; set "
        "spec.health.badSteps.action to Skip or Fail",
    ),
    Fault(
        "privacy of gradient descent",
        lambda: _private({"batch": {}, "optimizer": {"name": "gd"}}),
        "spec.trainer.privacy: needs spec.trainer.batch.global, the expected size of a batch whose samples are drawn "
        "at random; set it, and choose an optimizer other than gd",
    ),
    Fault(
        "privacy in bfloat16",
        lambda: _private({"precision": "bfloat16"}),
        "spec.trainer.privacy: gradients of single samples are computed in float32; set spec.trainer.precision: "
        "float32, or remove it",
    ),
    Fault("privacy of compiled blocks", lambda: _private({"compile": True}), _SAMPLE_GRADIENTS),
    Fault("privacy of recomputed blocks", lambda: _private({"activationCheckpointing": "full"}), _SAMPLE_GRADIENTS),
    Fault(
        "privacy with a plug-in",
        lambda: _private({"module": "own:build"}),
        "spec.trainer.privacy: a loss, a model or data of your own may mix samples, and then a bound on each sample's "
        "gradient protects none of them; remove spec.trainer.module",
    ),
    Fault(
        "privacy of several sources",
        lambda: _private({"data": {"sources": [_source()]}}),
        "spec.trainer.privacy: each sample must have the same probability, but those of several sources follow from "
        "their weights; put the data into one source (spec.trainer.data.source and path)",
    ),
    Fault(
        "privacy of conversations",
        lambda: _private({"data": {"source": "chat", "path": "/data"}}),
        "spec.trainer.privacy: conversations have different numbers of targets, by whose sum over a batch the loss is "
        "divided; set spec.trainer.data.source: text",
    ),
    Fault(
        "privacy with a tokenizer of the data",
        lambda: _private({"data": {"source": "text", "path": "/data", "tokenizer": "bpe"}}),
        "spec.trainer.privacy: a bpe tokenizer is learned from the data without protection, and shows frequent words "
        "of them; set spec.trainer.data.tokenizer to byte, or to file with a tokenizer of other data",
    ),
    Fault(
        "experts at a parameter server",
        lambda: _parallel(2, {"model": {"name": "moe", "preset": "nano"}}, data={"mode": "parameterServer"}),
        "spec.parallelism.data.mode: parameterServer is for llama, mlp and custom only (the load of the experts is "
        "balanced inside the layers); choose ddp, fsdp or hsdp, or another spec.trainer.model.name",
    ),
    Fault(
        "a compiled pipeline with the schedule ZBV",
        lambda: _parallel(2, {"compile": True}, pipeline={"stages": 2, "schedule": "ZBV"}),
        _COMPILE,
    ),
    Fault(
        "asynchronous tensor parallelism on CPUs",
        lambda: _parallel(2, {"compile": True}, tensor=2, asyncTensor=True),
        _ASYNC_TENSOR,
    ),
    Fault(
        "asynchronous tensor parallelism without compilation",
        lambda: _on_gpus(_parallel(1, tensor=2, asyncTensor=True), 2),
        _ASYNC_TENSOR,
    ),
    Fault(
        "asynchronous tensor parallelism between workers",
        lambda: _on_gpus(_parallel(2, {"compile": True}, tensor=2, asyncTensor=True)),
        _ASYNC_TENSOR,
    ),
    Fault(
        "float8 in float32",
        lambda: _on_gpus(_trainer(float8=True)),
        "spec.trainer.float8: needs precision bfloat16, which everything but matrix products is computed in, and "
        "compile, without which the scaling takes longer than float8 saves; set both, or remove float8",
    ),
    Fault(
        "float8 on a CPU",
        lambda: _trainer(**_FLOAT8),
        "spec.trainer.float8: needs GPUs of NVIDIA (H100 or newer), since a CPU has no products in float8; set "
        "spec.workers.resources.limits[nvidia.com/gpu], or remove it",
    ),
    Fault(
        "float8 with tensor parallelism",
        lambda: _on_gpus(_parallel(2, _FLOAT8, tensor=2)),
        "spec.trainer.float8: does not work with tensor or a parameter server; remove it, or choose another layout",
    ),
    Fault(
        "float8 with sequences of 100 tokens",
        lambda: _on_gpus(_trainer(**_FLOAT8, data={"source": "text", "path": "/data", "sequenceLength": 100})),
        "spec.trainer.float8: products in float8 need positions in multiples of 16; make "
        "spec.trainer.data.sequenceLength a multiple of 16 x spec.parallelism.context, or remove it",
    ),
    *(
        Fault(
            f"adapters with {name}",
            make,
            "spec.trainer.model.lora: adapters are not divided by a tensor group, and a parameter server updates all "
            "parameters; choose ddp, fsdp, hsdp, context or pipeline",
        )
        for name, make in (
            ("tensor parallelism", lambda: _parallel(2, {"model": _ADAPTED}, tensor=2)),
            ("a parameter server", lambda: _parallel(2, {"model": _ADAPTED}, data={"mode": "parameterServer"})),
        )
    ),
    Fault(
        "adapters with float8",
        lambda: _on_gpus(_trainer(**_FLOAT8, model=_ADAPTED)),
        "spec.trainer.float8: is for matrices that are trained, not for those with adapters; remove it, or "
        "spec.trainer.model.lora",
    ),
    Fault(
        "an export of adapters that do not exist",
        lambda: make_manifest(trainer=trainer_spec(export={"format": "peft"}), checkpoint={"claim": {"size": "1Gi"}}),
        "spec.trainer.export.format: peft is the format of adapters alone; set spec.trainer.model.lora, or choose "
        "huggingface",
    ),
    Fault(
        "adapters of a moe",
        lambda: _trainer(model={**_ADAPTED, "name": "moe"}),
        "spec.trainer.model.lora: is for llama only; remove it, or set spec.trainer.model.name: llama",
    ),
    Fault(
        "adapters of nothing",
        lambda: _model(lora={}),
        "spec.trainer.model.lora: adapters are trained beside weights that exist; set spec.trainer.model.from, or "
        "remove lora to train all parameters",
    ),
    Fault(
        "two adapters of one matrix",
        lambda: _trainer(model={**_ADAPTED, "lora": {"targets": ["q", "v", "q"]}}),
        "spec.trainer.model.lora.targets: names a matrix twice; remove one of them",
    ),
    Fault(
        "a parameter server without its mode",
        lambda: make_manifest(trainer=trainer_spec(), parameterServer={}),
        "spec.parameterServer: is only for spec.parallelism.data.mode parameterServer; remove it, or set that mode",
    ),
    Fault(
        "a parameter server with tensor parallelism",
        lambda: _parallel(2, data={"mode": "parameterServer"}, tensor=2),
        _ENTIRE_MODEL,
    ),
    *(
        Fault(
            f"an mlp with {field}",
            partial(make_manifest, trainer=_digits_spec(), parallelism=parallelism),
            f"spec.parallelism.{field}: is for {models}",
        )
        for field, parallelism, models in (
            (
                "pipeline.stages",
                {"pipeline": {"stages": 2}},
                f"llama and moe only ({_TOO_SMALL}; only the workers know the blocks and experts of a custom model); "
                "remove it, or set spec.trainer.model.name: llama or moe",
            ),
            (
                "context",
                {"context": 2},
                f"llama, moe and custom only ({_TOO_SMALL}); remove it, or set spec.trainer.model.name: llama, moe or "
                "custom",
            ),
        )
    ),
    Fault(
        "no stop condition",
        lambda: _without(_trainer(), "spec", "trainer", "stop"),
        "spec.trainer.stop: exactly one of steps, epochs and tokens must be given; keep the one you mean",
    ),
    Fault(
        "two stop conditions",
        lambda: _trainer(stop={"steps": 10, "epochs": 1}),
        "spec.trainer.stop: exactly one of steps, epochs and tokens must be given; keep the one you mean",
    ),
    Fault(
        "Nesterov's momentum without momentum",
        lambda: _trainer(optimizer={"name": "sgd", "nesterov": True}),
        "spec.trainer.optimizer.nesterov: needs momentum; set spec.trainer.optimizer.momentum, usually to 0.9",
    ),
    *(
        Fault(
            f"{parameter} with the optimizer {name}",
            partial(_trainer, optimizer={"name": name, parameter: value}),
            f"spec.trainer.optimizer.{parameter}: is a parameter of {owners} only; remove it, or choose one of these "
            "as spec.trainer.optimizer.name",
        )
        for parameter, value, name, owners in (
            ("momentum", 0.9, "adam", "sgd, rmsprop, muon"),
            ("nesterov", True, "adamw", "sgd, muon"),
            ("alpha", 0.9, "sgd", "rmsprop"),
            ("betas", [0.9, 0.9], "rmsprop", "adam, adamw, muon"),
            ("eps", 1e-8, "sgd", "adagrad, rmsprop, adam, adamw, muon"),
        )
    ),
    *(
        Fault(
            f"{name} without a volume",
            partial(_trainer, **{name: value}),
            "spec.trainer: tensorboard and profile write to the checkpoint volume; set spec.checkpoint.volume or "
            "claim, or remove them",
        )
        for name, value in (("tensorboard", True), ("profile", {"startStep": 5}))
    ),
    *(
        Fault(
            f"a report without a volume: {name}",
            partial(_trainer, **{name: value}),
            "spec.trainer: task: evaluate, evaluation.report and explain write reports to the checkpoint volume; add "
            "spec.checkpoint, or remove them",
        )
        for name, value in (("task", "evaluate"), ("explain", {"samples": 5}))
    ),
    Fault(
        "an evaluation with a parameter server",
        lambda: make_manifest(
            trainer=trainer_spec(task="evaluate"),
            parallelism={"data": {"mode": "parameterServer"}},
            checkpoint={"claim": {"size": "1Gi"}},
        ),
        "spec.trainer.task: evaluate needs no parameter server, which only updates parameters; set "
        "spec.parallelism.data.mode: ddp",
    ),
    Fault(
        "a job that only evaluates, with the schedule ZBV",
        lambda: make_manifest(
            trainer=trainer_spec(task="evaluate", model={"name": "llama", "preset": "nano", "layers": 4}),
            parallelism={"pipeline": {"stages": 2, "schedule": "ZBV"}},
            checkpoint={"claim": {"size": "1Gi"}},
        ),
        "spec.parallelism.pipeline.schedule: ZBV cannot evaluate (torch 2.15 has no forward pass alone for it); "
        "choose Interleaved1F1B",
    ),
    Fault(
        "explanations of a model that is sharded",
        lambda: make_manifest(
            trainer=trainer_spec(explain={}),
            parallelism={"data": {"mode": "fsdp"}},
            checkpoint={"claim": {"size": "1Gi"}},
        ),
        "spec.trainer.explain: needs the entire model on each rank; set spec.parallelism.data.mode: ddp without "
        "tensor, context, expert and pipeline, or remove it and run trainyard explain on the checkpoint",
    ),
    Fault(
        "explanations of a moe",
        lambda: make_manifest(
            trainer=trainer_spec(explain={}, model={"name": "moe", "preset": "nano"}),
            checkpoint={"claim": {"size": "1Gi"}},
        ),
        "spec.trainer.explain: is for llama and mlp only (the choice of experts changes in jumps, which no gradient "
        "sees); remove it, or set spec.trainer.model.name: llama or mlp",
    ),
    Fault(
        "a text as an image",
        lambda: make_manifest(trainer=trainer_spec(explain={"imageWidth": 8}), checkpoint={"claim": {"size": "1Gi"}}),
        "spec.trainer.explain.imageWidth: is for tables only; remove it",
    ),
    Fault(
        "signatures without checkpoints",
        partial(_trainer, signingKeyFile="/keys/private.pem"),
        "spec.trainer.signingKeyFile: signs the records of checkpoints, but none are written; add spec.checkpoint, or "
        "remove it",
    ),
    Fault(
        "a profile in an object store",
        lambda: make_manifest(trainer=trainer_spec(profile={"startStep": 5}), checkpoint={"url": "s3://bucket/runs"}),
        "spec.trainer: tensorboard and profile write to the checkpoint volume; set spec.checkpoint.volume or claim, or "
        "remove them",
    ),
    *(
        Fault(
            f"checkpoints at {url}",
            partial(make_manifest, checkpoint={"url": url}),
            f"spec.checkpoint.url: {_URL}",
        )
        for url in ("/checkpoints", "https://host/bucket", "s3://key:secret@bucket/runs", "s3://bucket/runs?key=secret")
    ),
    *(
        Fault(
            f"{field} at a URL with a password",
            partial(_trainer, data={**_FILE_TOKENIZER, field: _SECRET_URL}),
            f"spec.trainer.data.{field}: {_URL}",
        )
        for field in ("path", "evalPath", "tokenizerFile")
    ),
    *(
        Fault(
            f"{field} of a source at a URL with a password",
            partial(_trainer, data={"sources": [{"name": "a", "source": "text", "path": "/a", field: _SECRET_URL}]}),
            f"spec.trainer.data.sources.{field}: {_URL}",
        )
        for field in ("path", "evalPath")
    ),
    Fault(
        "a template at a URL with a password",
        lambda: _trainer(data={**_FILE_TOKENIZER, "source": "chat", "chatTemplate": _SECRET_URL}),
        f"spec.trainer.data.chatTemplate: {_URL}",
    ),
    Fault(
        "a list of excluded samples at a URL with a password",
        lambda: _trainer(data={**_FILE_TOKENIZER, "exclude": {"file": _SECRET_URL}}),
        f"spec.trainer.data.exclude.file: {_URL}",
    ),
    Fault(
        "weights at a URL with a password",
        lambda: _trainer(model={"name": "llama", "from": {"path": _SECRET_URL}}),
        f"spec.trainer.model.from.path: {_URL}",
    ),
    Fault(
        "an export to a URL with a password",
        lambda: make_manifest(
            trainer=trainer_spec(export={"path": _SECRET_URL}), checkpoint={"url": "s3://bucket/runs"}
        ),
        f"spec.trainer.export.path: {_URL}",
    ),
    Fault(
        "prepared data in an object store",
        lambda: _trainer(data={"source": "text", "path": "/d", "cache": "s3://bucket/cache"}),
        "spec.trainer.data.cache: must be a path on a volume, since tokens are mapped into memory; correct it, or "
        "remove it",
    ),
    Fault(
        "a secret key in the spec",
        lambda: make_manifest(env=[{"name": "AWS_SECRET_ACCESS_KEY", "value": "secret"}]),
        f"spec.env: {listed(SECRET_VARIABLES)} must come from a Secret, since every user who may read the job can read "
        "its values; use valueFrom.secretKeyRef",
    ),
    Fault(
        "a profile of a rank that does not exist",
        lambda: make_manifest(
            replicas=2,
            trainer=trainer_spec(profile={"startStep": 5, "ranks": [0, 2]}),
            checkpoint={"claim": {"size": "1Gi"}},
        ),
        "spec.trainer.profile.ranks: must be ranks of this job, which are numbered from 0 to workers.replicas x "
        "workers.procsPerWorker - 1; correct them",
    ),
    Fault(
        "metrics of the built-in trainer",
        lambda: make_manifest(trainer=trainer_spec(), metrics={"port": 9500}),
        "spec.metrics: is about spec.command; the built-in trainer serves its metrics by itself, remove it",
    ),
    *(
        Fault(
            f"metrics at port {port}",
            partial(make_manifest, metrics={"port": port}),
            "spec.metrics.port: must not be 29500 (rendezvous) or 9401 (launcher); choose another port",
        )
        for port in (29500, 9401)
    ),
    Fault(
        "health of a user program",
        lambda: make_manifest(health={"startupTimeoutSeconds": 60}),
        "spec.health: needs spec.trainer; a program of your own reports no steps, remove it",
    ),
    Fault(
        "checkpoints without a volume",
        lambda: make_manifest(checkpoint={}),
        "spec.checkpoint: exactly one of volume, claim and url must be given; add one, or remove the others",
    ),
    Fault(
        "checkpoints of two workers on their own disks",
        lambda: make_manifest(trainer=trainer_spec(), checkpoint={"volume": {"emptyDir": {}}}),
        _OWN_VOLUMES,
    ),
    Fault(
        "checkpoints of a worker and a parameter server in claims of their own",
        lambda: make_manifest(
            replicas=1,
            trainer=trainer_spec(),
            parallelism={"data": {"mode": "parameterServer"}},
            checkpoint={"volume": {"ephemeral": {}}},
        ),
        _OWN_VOLUMES,
    ),
    Fault(
        "everySteps of a user program",
        lambda: make_manifest(checkpoint={"claim": {"size": "1Gi"}, "everySteps": 10}),
        "spec.checkpoint: everySteps, everySeconds, keep and async are the built-in trainer's; remove them, a "
        "program of your own finds the volume at TRAINYARD_CHECKPOINTS and writes to it as it likes",
    ),
    Fault(
        "a restart rule without a condition",
        lambda: make_manifest(restartPolicy={"rules": [{"action": "Fail"}]}),
        _ONE_CONDITION,
    ),
    Fault(
        "a restart rule with two conditions",
        lambda: make_manifest(restartPolicy={"rules": [{"onExitCodes": [1], "onReasons": ["E"], "action": "Fail"}]}),
        _ONE_CONDITION,
    ),
    Fault(
        "a name too long for a pod's host name",
        lambda: make_manifest("a" * 51),
        "metadata.name: must be at most 50 characters, since pods are named NAME-ATTEMPT-INDEX "
        "and a host name has at most 63; choose a shorter name",
    ),
    Fault(
        "a name that starts with a digit",
        lambda: make_manifest("1job"),
        "metadata.name: must start with a letter and hold only a-z, 0-9 and '-', since it names a "
        "Service; choose another name",
    ),
    Fault(
        "a name with a dot",
        lambda: make_manifest("my.job"),
        "metadata.name: must start with a letter and hold only a-z, 0-9 and '-', since it names a "
        "Service; choose another name",
    ),
    Fault(
        "a scheduling timeout before an elastic group can shrink",
        lambda: _elastic(schedulingTimeoutSeconds=300),
        "spec.schedulingTimeoutSeconds: must be more than spec.elastic.resizeAfterSeconds, so that the group tries "
        "with fewer workers first; raise it, or lower resizeAfterSeconds",
    ),
    Fault(
        "an elastic group in a queue",
        lambda: _elastic(scheduling={"queue": "research"}),
        "spec.scheduling.queue: a queue gives quota to a group of one size, and the single pods with which "
        "spec.elastic looks for capacity would wait in it in front of other jobs; remove one of them",
    ),
    Fault(
        "the success of rank 0 with the built-in trainer",
        lambda: make_manifest(trainer=trainer_spec(), successPolicy="RankZero"),
        "spec.successPolicy: RankZero is for spec.command; remove it, since all ranks of the built-in trainer end "
        "together",
    ),
    Fault("elastic with a user program", lambda: make_manifest(elastic={"minReplicas": 1}), _ELASTIC_NEEDS),
    Fault("elastic without checkpoints", lambda: _without(_elastic(), "spec", "checkpoint"), _ELASTIC_NEEDS),
    Fault(
        "fewer workers than elastic.minReplicas",
        lambda: _elastic(4, replicas=2),
        "spec.workers.replicas: must be at least spec.elastic.minReplicas; raise it, or lower minReplicas",
    ),
    Fault(
        "more workers than elastic.maxReplicas",
        lambda: _elastic(1, replicas=4, elastic={"maxReplicas": 2}),
        "spec.workers.replicas: must be at most spec.elastic.maxReplicas; lower it, or raise maxReplicas",
    ),
    Fault("a batch that fewer workers cannot divide", lambda: _elastic(3), _ELASTIC_LAYOUT),
    Fault(
        "a mesh that fewer workers cannot make", lambda: _elastic_batch(1, 4, {"global": 16}, tensor=2), _ELASTIC_LAYOUT
    ),
    Fault(
        "micro-batches that fewer workers cannot make",
        lambda: _elastic_batch(3, 4, {"global": 24, "micro": 3}),
        _ELASTIC_LAYOUT,
    ),
    Fault(
        "a pipeline that fewer workers cannot fill",
        lambda: _elastic_batch(8, 12, {"global": 12}, pipeline={"stages": 2}),
        _ELASTIC_LAYOUT,
    ),
    Fault(
        "groups that fewer workers cannot make",
        lambda: _elastic_batch(3, 4, {"global": 12}, data={"mode": "hsdp", "shard": 2}),
        _ELASTIC_LAYOUT,
    ),
    Fault(
        "experts that fewer workers cannot hold",
        lambda: _elastic(
            3,
            trainer=trainer_spec(batch={"global": 12}, model={"name": "moe", "preset": "nano"}),
            parallelism={"expert": 2},
        ),
        _ELASTIC_LAYOUT,
    ),
)

SCHEMA = (
    *(
        Fault(
            f"memory of {value!r}",
            partial(make_manifest, workers={"resources": {"limits": {"memory": value}}}),
            "spec.workers.resources.limits.memory: must be a quantity such as 500m, 2 or 64Gi or must be a whole "
            f"number, not {value!r}",
            server="spec.workers.resources.limits.memory: Invalid value: ",
        )
        for value in ("2GB", "two", "2 Gi", "-1", "")
    ),
    Fault(
        "a negative number of CPUs",
        lambda: make_manifest(workers={"resources": {"requests": {"cpu": -1}}}),
        "spec.workers.resources.requests.cpu: must be a string or must be at least 0, not -1",
        server="spec.workers.resources.requests.cpu: Invalid value: ",
    ),
    Fault(
        "a fraction of a CPU without quotes",
        lambda: make_manifest(workers={"resources": {"requests": {"cpu": 0.5}}}),
        "spec.workers.resources.requests.cpu: must be a string or must be a whole number, not 0.5",
        server="spec.workers.resources.requests.cpu: Invalid value: ",
    ),
    Fault(
        "an unknown field with a likely meaning",
        lambda: make_manifest(workers={"replica": 2}),
        "spec.workers.replica: unknown field; did you mean replicas?",
        server='unknown field "spec.workers.replica"',
        strict=True,
    ),
    Fault(
        "an unknown field with no likely meaning",
        lambda: make_manifest(restartPolicy={"xyz": 1}),
        "spec.restartPolicy.xyz: unknown field; known here: maxRestarts, maxDisruptions, backoff, inPlace, rules",
        server='unknown field "spec.restartPolicy.xyz"',
        strict=True,
    ),
    Fault(
        "no workers",
        lambda: make_manifest(replicas=0),
        "spec.workers.replicas: must be at least 1, not 0",
        server="spec.workers.replicas: Invalid value: 0: spec.workers.replicas in body should be greater than or "
        "equal to 1",
    ),
    Fault(
        "an evaluation of no samples",
        lambda: _trainer(data={"evalFraction": 0.1}, evaluation={"maxSamples": 0}),
        "spec.trainer.evaluation.maxSamples: must be at least 1, not 0",
        server="spec.trainer.evaluation.maxSamples in body should be greater than or equal to 1",
    ),
    Fault(
        "a string for an integer",
        lambda: make_manifest(workers={"replicas": "2"}),
        "spec.workers.replicas: must be a whole number, not '2'",
        server='spec.workers.replicas: Invalid value: "string": spec.workers.replicas in body must be of type integer',
    ),
    Fault(
        "a string for a list",
        lambda: make_manifest(command="train"),
        "spec.command: must be a list, not 'train'",
        server='spec.command: Invalid value: "string": spec.command in body must be of type array',
    ),
    Fault(
        "an integer for a boolean",
        lambda: make_manifest(suspend=1),
        "spec.suspend: must be true or false, not 1",
        server='spec.suspend: Invalid value: "integer": spec.suspend in body must be of type boolean',
    ),
    Fault(
        "an empty command",
        lambda: make_manifest(command=[]),
        "spec.command: must have at least 1 entries, not []",
        server="spec.command: Invalid value: 0: spec.command in body should have at least 1 items",
    ),
    Fault(
        "an unknown preset",
        lambda: _model(preset="huge"),
        f"spec.trainer.model.preset: must be {', '.join(map(repr, (*_LLAMAS, *_MOES)[:-1]))} or 'qwen3-235b-a22b', "
        "not 'huge'",
        server='spec.trainer.model.preset: Unsupported value: "huge": supported values: "nano", "tiny", "small", '
        '"medium", "1b", "8b", "70b", "llama3-8b", ',
    ),
    Fault(
        "gpuMemory that is not a quantity",
        lambda: make_manifest(workers={"gpuMemory": "a lot", "resources": {"limits": {"nvidia.com/gpu": 1}}}),
        "spec.workers.gpuMemory: must match ^[1-9][0-9]*(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$, not 'a lot'",
        server='spec.workers.gpuMemory: Invalid value: "a lot": spec.workers.gpuMemory in body should match '
        "'^[1-9][0-9]*(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$'",
    ),
    Fault(
        "sharedMemory of zero",
        lambda: make_manifest(workers={"sharedMemory": "0"}),
        "spec.workers.sharedMemory: must match ^[1-9][0-9]*(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$, not '0'",
        server='spec.workers.sharedMemory: Invalid value: "0": spec.workers.sharedMemory in body should match '
        "'^[1-9][0-9]*(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$'",
    ),
    Fault(
        "a learning rate of zero",
        lambda: _trainer(optimizer={"learningRate": 0}),
        "spec.trainer.optimizer.learningRate: must be greater than 0.0, not 0",
        server="spec.trainer.optimizer.learningRate: Invalid value: 0: spec.trainer.optimizer.learningRate in body "
        "should be greater than 0",
    ),
    Fault(
        "exit code 0 in a restart rule",
        lambda: make_manifest(restartPolicy={"rules": [{"onExitCodes": [0], "action": "Fail"}]}),
        "spec.restartPolicy.rules[0].onExitCodes[0]: must be at least 1, not 0",
        server="spec.restartPolicy.rules[0].onExitCodes[0]: Invalid value: 0: "
        "spec.restartPolicy.rules[0].onExitCodes[0] in body should be greater than or equal to 1",
    ),
    Fault(
        "a budget of zero",
        lambda: _private({"privacy": {"epsilon": 0, "delta": 1e-6}}),
        "spec.trainer.privacy.epsilon: must be greater than 0.0, not 0",
        server="spec.trainer.privacy.epsilon: Invalid value: 0: spec.trainer.privacy.epsilon in body should be greater "
        "than 0",
    ),
    Fault(
        "an environment variable without a name",
        lambda: make_manifest(env=[{"name": "A", "value": "1"}, {"value": "2"}]),
        "spec.env[1].name: is required; add it",
        server="spec.env[1].name: Required value",
    ),
)

FAULTS = RULES + SCHEMA
