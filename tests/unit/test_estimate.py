"""Estimates of a job: parameters, memory and communication, and when it is refused for its memory."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.builders import make_job, trainer_spec
from tests.support.samples import SAMPLES, sample
from trainyard.admission import admit
from trainyard.estimate import Estimate, TrainingEstimate, estimate
from trainyard.mesh import Mesh
from trainyard.models import FAMILIES
from trainyard.models.decoder_sizes import DecoderConfig
from trainyard.models.family import FULL_BYTES, DataShape
from trainyard.models.llama import LlamaFamily
from trainyard.models.moe import MoeFamily
from trainyard.resolve import SAMPLE_GRADIENT_SCALARS, resolve, spec_problems
from trainyard.resource.job import TrainingJob
from trainyard.sizing.activations import activations
from trainyard.sizing.fit import _fullest_worker
from trainyard.sizing.memory import Memory
from trainyard.sizing.placement import placement
from trainyard.sizing.process_memory import GPU_BYTES, LAUNCHER_BYTES, RANK_BYTES
from trainyard.sizing.traffic import crosses_workers

FSDP = {"mode": "fsdp"}


def gpus(
    preset: str, workers: int, parallelism: dict[str, Any], memory: str | None = "80Gi", **trainer: Any
) -> TrainingJob:
    """Workers of eight GPUs each."""
    limits = {"resources": {"limits": {"nvidia.com/gpu": 8}}}
    return make_job(
        replicas=workers,
        workers=limits | ({"gpuMemory": memory} if memory else {}),
        parallelism=parallelism,
        trainer=trainer_spec(
            data={"source": "text", "builtin": "python-stdlib", "sequenceLength": 2048},
            **{"model": {"name": "llama", "preset": preset}, "batch": {"global": 512, "micro": 1}, **trainer},
        ),
    )


def cpus(memory: str | None = None, replicas: int = 1, procs: int = 1, **spec: Any) -> TrainingJob:
    resources = {"limits": {"memory": memory}} if memory else {}
    trainer = trainer_spec(**spec.pop("trainer", {}))
    return make_job(
        replicas=replicas, workers={"procsPerWorker": procs, "resources": resources}, trainer=trainer, **spec
    )


def training(job: TrainingJob) -> TrainingEstimate:
    found = estimate(job).training
    assert found is not None
    return found


def decoder(job: TrainingJob) -> DecoderConfig:
    model = resolve(job).model
    assert isinstance(model, DecoderConfig)
    return model


def memory(job: TrainingJob) -> Memory:
    return training(job).fit.memory


@pytest.mark.parametrize(
    ("preset", "vocabulary", "parameters"),
    # As published, except for the plain 1b, in which embedding and head are two matrices.
    [
        ("1b", 128_256, 1_235_814_400 + 128_256 * 2048),
        ("8b", 128_256, 8_030_261_248),
        ("70b", 128_256, 70_553_706_496),
        ("llama3-8b", 128_256, 8_030_261_248),
        ("llama3.1-70b", 128_256, 70_553_706_496),
        ("llama3.1-405b", 128_256, 405_853_388_800),
        ("llama3.2-1b", 128_256, 1_235_814_400),
        ("llama3.2-3b", 128_256, 3_212_749_824),
        ("qwen3-0.6b", 151_936, 596_049_920),
        ("qwen3-1.7b", 151_936, 1_720_574_976),
        ("qwen3-4b", 151_936, 4_022_468_096),
        ("qwen3-8b", 151_936, 8_190_735_360),
        ("qwen3-14b", 151_936, 14_768_307_200),
        ("qwen3-32b", 151_936, 32_762_123_264),
    ],
)
def test_presets_have_the_parameters_of_published_models(preset: str, vocabulary: int, parameters: int) -> None:
    family = LlamaFamily()
    assert family.parameters(family.resolve({"preset": preset}, DataShape(vocabulary, 8192, None, None))) == parameters


@pytest.mark.parametrize(
    ("preset", "vocabulary", "whole", "active"),
    [
        ("8x7b", 32_000, 46.7e9, 12.9e9),
        ("8x22b", 32_768, 140.6e9, 39.1e9),
        ("mixtral-8x7b", 32_000, 46.7e9, 12.9e9),
        ("mixtral-8x22b", 32_768, 140.6e9, 39.1e9),
        ("qwen3-30b-a3b", 151_936, 30.53e9, 3.35e9),
        ("qwen3-235b-a22b", 151_936, 235.1e9, 22.2e9),
    ],
)
def test_presets_have_the_parameters_of_published_mixtures(
    preset: str, vocabulary: int, whole: float, active: float
) -> None:
    family = MoeFamily()
    model = family.resolve({"preset": preset}, DataShape(vocabulary, 8192, None, None))
    assert family.parameters(model) == pytest.approx(whole, rel=0.002)
    assert family.active_parameters(model) == pytest.approx(active, rel=0.005)


@pytest.mark.parametrize("name", ["llama", "moe"])
def test_each_field_of_a_decoder_replaces_the_presets(name: str) -> None:
    given = {
        "name": name,
        "preset": "llama3.2-1b" if name == "llama" else "qwen3-30b-a3b",
        "dim": 64,
        "heads": 4,
        "headDim": 24,
        "ropeTheta": 123.0,
        "ropeScaling": {"type": "linear", "factor": 2.0},
        "normEps": 1e-3,
        "tiedEmbeddings": False,
        "qkNorm": True,
    }
    resolved = FAMILIES[name].resolve(given, DataShape(256, 16, None, None)).to_dict()
    assert {key: resolved[key] for key in given if key not in ("name", "preset")} == {
        key: value for key, value in given.items() if key not in ("name", "preset")
    }


def test_scaling_of_a_preset_can_be_removed() -> None:
    shape = DataShape(256, 16, None, None)
    given = {"preset": "llama3.2-1b", "ropeScaling": {"type": "none"}}
    assert LlamaFamily().resolve({"preset": "llama3.2-1b"}, shape).rope_scaling is not None
    assert LlamaFamily().resolve(given, shape).rope_scaling is None


# --- memory ---------------------------------------------------------------------------------------------------


def test_70b_fits_on_64_gpus_when_it_is_sharded_and_split() -> None:
    job = gpus("70b", 8, {"data": FSDP, "tensor": 8}, activationCheckpointing="full")
    assert spec_problems(job) == []
    found = training(job).fit
    assert found.fits is True
    assert found.field == "spec.workers.gpuMemory"
    # Weights, two moments, whole gradients of eight micro-batches.
    parameters = training(job).parameters
    assert found.memory.weights == pytest.approx(4 * parameters / 64, rel=0.01)
    assert found.memory.optimizer == pytest.approx(8 * parameters / 64, rel=0.01)
    assert found.memory.gradients == pytest.approx(4 * parameters / 8, rel=0.01)
    assert found.needed == found.memory.total + GPU_BYTES


def test_70b_on_one_gpu_is_refused() -> None:
    trainer = {"model": {"name": "llama", "preset": "70b"}, "batch": {"global": 1}}
    limits = {"resources": {"limits": {"nvidia.com/gpu": 1}}, "gpuMemory": "80Gi"}
    (problem,) = spec_problems(make_job(replicas=1, workers=limits, trainer=trainer_spec(**trainer)))
    assert problem.startswith("spec.workers.gpuMemory: each GPU has 80.0Gi but needs about 1.")
    assert "optimizer 510Gi, gradients 257Gi, weights 255Gi" in problem
    assert problem.endswith(
        "give more memory, or use more workers with spec.parallelism.data.mode: fsdp and a larger "
        "spec.parallelism.tensor or pipeline.stages"
    )


def test_a_job_too_large_for_each_gpu_is_refused_with_a_change_that_helps() -> None:
    (problem,) = spec_problems(gpus("8b", 1, {}, activationCheckpointing="full", batch={"global": 8}))
    assert "; set spec.parallelism.data.mode: fsdp (then about " in problem
    changed = gpus("8b", 1, {"data": FSDP}, activationCheckpointing="full", batch={"global": 8})
    assert spec_problems(changed) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": {"global": 16}}, "set spec.trainer.batch.micro: 1 (then about "),
        ({"batch": {"global": 16, "micro": 1}}, "set spec.trainer.activationCheckpointing: full (then about "),
    ],
)
def test_activations_that_do_not_fit_are_refused_with_a_change_that_helps(change: Any, words: str) -> None:
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 1024}
    model = {"name": "llama", "preset": "small"}
    enough = "4Gi" if "micro" not in change["batch"] else "2500Mi"
    (problem,) = spec_problems(cpus(enough, trainer={"model": model, "data": data, **change}))
    assert problem.startswith("spec.workers.resources.limits.memory: a worker has ")
    assert words in problem


def test_memory_of_a_worker_is_the_sum_over_its_ranks_and_what_they_share() -> None:
    alone, both = training(cpus("2Gi")).fit, training(cpus("2Gi", procs=2)).fit
    assert alone.needed == alone.memory.total + LAUNCHER_BYTES + RANK_BYTES
    assert both.needed == 2 * both.memory.total + LAUNCHER_BYTES + 2 * RANK_BYTES


@pytest.mark.parametrize("job", [cpus(), gpus("70b", 8, {}, memory=None)])
def test_without_any_memory_nothing_is_checked(job: TrainingJob) -> None:
    assert spec_problems(job) == []
    assert training(job).fit.fits is None


def test_a_limit_that_is_too_large_for_a_quantity_is_reported() -> None:
    assert spec_problems(cpus("1e999")) == [
        "spec.workers.resources.limits.memory: '1e999' is too large for a quantity of memory; write it like 2Gi"
    ]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_fits(name: str) -> None:
    assert estimate(admit(sample(name))).problems == ()


def test_sharding_divides_weights_and_optimizer_state() -> None:
    whole, half = memory(cpus(replicas=2)), memory(cpus(replicas=2, parallelism={"data": FSDP}))
    assert half.weights == whole.weights // 2
    assert half.optimizer == whole.optimizer // 2


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        ({"name": "sgd"}, 0),
        ({"name": "sgd", "momentum": 0.9}, 1),
        ({"name": "adagrad"}, 1),
        ({"name": "rmsprop"}, 1),
        ({"name": "rmsprop", "momentum": 0.9}, 2),
        ({"name": "adam"}, 2),
        ({"name": "adamw"}, 2),
    ],
)
def test_optimizers_keep_states(optimizer: dict[str, Any], states: int) -> None:
    found = memory(cpus(trainer={"optimizer": optimizer}))
    assert found.optimizer == states * found.weights


def test_muon_keeps_one_state_of_inner_matrices_and_two_of_the_rest() -> None:
    found, model = memory(cpus(trainer={"optimizer": {"name": "muon"}})), decoder(cpus())
    rest = 2 * model.vocab_size * model.dim + (2 * model.layers + 1) * model.dim
    assert found.optimizer == found.weights + 4 * rest


def test_1f1b_keeps_as_many_micro_batches_as_stages_and_gpipe_all() -> None:
    def activations(schedule: str) -> int:
        parallelism = {"pipeline": {"stages": 2, "schedule": schedule}}
        batch = {"global": 16, "micro": 2}
        return memory(cpus(replicas=2, parallelism=parallelism, trainer={"batch": batch})).activations

    assert 3.5 < activations("GPipe") / activations("1F1B") < 4


def test_checkpointing_keeps_less() -> None:
    none, selective, full = (
        memory(cpus(trainer={"activationCheckpointing": mode})).activations for mode in ("none", "selective", "full")
    )
    assert full < selective < none


def moe(replicas: int = 1, **spec: Any) -> TrainingJob:
    trainer = {"model": {"name": "moe", "preset": "nano"}, **spec.pop("trainer", {})}
    return cpus(replicas=replicas, trainer=trainer, **spec)


STACKS = 4 * 8 * 3 * 128 * 192
"""Scalars of all experts of the nano moe."""


def test_experts_are_divided_and_all_else_is_sharded_over_the_expert_axis() -> None:
    whole = training(moe()).parameters
    alone, both = training(moe(2, parallelism={"expert": 2})), training(moe(4, parallelism={"data": FSDP, "expert": 2}))
    assert alone.rank_parameters == (whole - STACKS) // 2 + STACKS // 2
    assert both.rank_parameters == (whole - STACKS) // 4 + STACKS // 4
    # In one block with the rest, experts are gathered; of their own they stay where they are.
    gathered = memory(moe(2, parallelism={"data": FSDP})).buffers
    assert memory(moe(2, parallelism={"expert": 2})).buffers < gathered / 2


def test_muon_leaves_stacks_of_experts_to_adamw() -> None:
    found, model = memory(moe(trainer={"optimizer": {"name": "muon"}})), decoder(moe())
    matrices = model.layers * (4 * 128 * 128 + 128 * 8)
    assert found.optimizer == 2 * found.weights - 4 * matrices


def test_a_moe_keeps_rows_for_each_expert_of_a_token() -> None:
    def block(experts: int) -> int:
        sizes = {"name": "moe", "preset": "nano", "expertsPerToken": experts}
        return activations(resolve(moe(trainer={"model": sizes})), gpu=False).block

    rows = 16 * 256
    assert block(3) - block(2) == rows * (4 * (2 * 128 + 4 * 192) + 16)


def test_a_moe_that_does_not_fit_is_advised_to_split_its_experts() -> None:
    def job(memory: str, parallelism: dict[str, Any], **trainer: Any) -> TrainingJob:
        model = {"name": "moe", "preset": "8x7b"}
        return gpus(
            "", 1, {"data": FSDP, **parallelism}, memory, model=model, batch={"global": 8, "micro": 1}, **trainer
        )

    needed = training(job("1Gi", {"expert": 2}, activationCheckpointing="full")).fit.needed
    (problem,) = spec_problems(job(f"{needed // 2**20 + 1}Mi", {}))
    assert "set spec.parallelism: {data: {mode: fsdp}, expert: 2}, spec.trainer.activationCheck" in problem
    assert "tensor" not in problem


def test_bfloat16_halves_gathered_parameters_and_activations_but_not_state() -> None:
    def of(precision: str) -> TrainingJob:
        return cpus(replicas=2, parallelism={"data": FSDP}, trainer={"precision": precision})

    full, half = memory(of("float32")), memory(of("bfloat16"))
    assert (half.weights, half.optimizer) == (full.weights, full.optimizer)
    assert half.activations < 0.75 * full.activations
    assert sent(of("bfloat16"))[("shard", "all-gather")][1] == sent(of("float32"))[("shard", "all-gather")][1] // 2
    assert sent(of("bfloat16"))[("shard", "reduce-scatter")] == sent(of("float32"))[("shard", "reduce-scatter")]


@pytest.mark.parametrize(
    ("ranks", "parallelism", "model", "expected"),
    [
        (1, {}, "moe", (False, False)),
        (2, {}, "llama", (True, False)),
        (2, {}, "moe", (False, True)),
        (2, {"expert": 2}, "moe", (False, True)),
        (2, {"tensor": 2}, "llama", (False, False)),
        (2, {"data": {"mode": "parameterServer"}}, "llama", (False, False)),
    ],
)
def test_which_layouts_replicate_and_which_shard(ranks: int, parallelism: Any, model: str, expected: Any) -> None:
    trainer = {"model": {"name": model, "preset": "nano"}}
    placed = placement(resolve(cpus(replicas=ranks, parallelism=parallelism, trainer=trainer)))
    assert (placed.replicated, placed.sharded) == expected


def test_bfloat16_is_cast_by_fully_shard_except_with_a_parameter_server() -> None:
    job = cpus(replicas=2, parallelism={"tensor": 2}, trainer={"precision": "bfloat16"})
    assert placement(resolve(job)).sharded
    alone = placement(resolve(cpus(trainer={"precision": "bfloat16"})))
    assert (alone.sharded, alone.shards, alone.casts) == (True, 1, False)
    served = cpus(replicas=2, parallelism={"data": {"mode": "parameterServer"}}, trainer={"precision": "bfloat16"})
    assert (placement(resolve(served)).sharded, placement(resolve(served)).casts) == (False, True)


def with_server(limit: str | None, **trainer: Any) -> TrainingJob:
    server: dict[str, Any] = {"parameterServer": {"resources": {"limits": {"memory": limit}}}} if limit else {}
    return cpus(replicas=2, parallelism={"data": {"mode": "parameterServer"}}, trainer=trainer, **server)


def test_a_parameter_server_holds_two_gradients_and_the_optimizer_state() -> None:
    found = training(with_server("4Gi"))
    size = 4 * found.parameters
    assert found.server is not None
    assert found.server.memory.parts == {
        "weights": size, "gradients": size, "optimizer": 2 * size, "activations": 0, "logits": 0, "buffers": size,
        "checkpoint": 0,
    }  # fmt: skip
    assert found.server.needed == 5 * size + LAUNCHER_BYTES + RANK_BYTES
    assert found.server.fits is True
    assert (found.fit.memory.optimizer, found.fit.memory.gradients) == (0, size)
    both = [(t.what, t.bytes) for t in found.communication]
    assert both == [("gradients, to the server", size), ("parameters, from the server", size)]


def test_a_parameter_server_that_is_too_small_is_refused() -> None:
    (problem,) = estimate(with_server("400Mi")).problems
    assert problem.startswith(
        "spec.parameterServer.resources.limits.memory: the parameter server has 400Mi but needs about "
    )
    assert estimate(with_server(None)).problems == ()
    assert spec_problems(with_server("1e999")) == [
        "spec.parameterServer.resources.limits.memory: '1e999' is too large for a quantity of memory; write it like 2Gi"
    ]


@pytest.mark.parametrize("stages", [1, 2])
def test_gradient_descent_holds_gradients_before_its_last_micro_batch(stages: int) -> None:
    trainer = {"optimizer": {"name": "gd"}, "batch": {}}
    job = cpus(replicas=2, parallelism={"pipeline": {"stages": stages}}, trainer=trainer)
    found = training(job)
    assert (found.work.samples, found.work.flops) == (None, None)
    assert found.work.micro_batches == stages
    assert found.fit.memory.gradients >= found.fit.memory.weights


def test_gradient_descent_that_does_not_fit_is_refused_with_a_change_that_helps() -> None:
    trainer = {"optimizer": {"name": "gd"}, "batch": {}}
    (problem,) = spec_problems(cpus("500Mi", trainer=trainer))
    assert "set spec.trainer.batch.micro: 1 (then about " in problem


@given(st.lists(st.integers(0, 99), min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 12))
def test_the_fullest_worker_is_found(totals: list[int], each: int, procs: int) -> None:
    ranks = [total for total in totals for _ in range(each)]
    assume(len(ranks) % procs == 0)
    workers = [ranks[first : first + procs] for first in range(0, len(ranks), procs)]
    assert _fullest_worker(totals, len(ranks), procs) == max(map(sum, workers))


# --- computation and communication ----------------------------------------------------------------------------


def test_work_of_a_step() -> None:
    job = cpus(trainer={"batch": {"global": 16, "micro": 4}})
    work, model = training(job).work, decoder(job)
    assert (work.samples, work.tokens, work.micro_batches, work.bubble) == (16, 16 * 256, 4, 0.0)
    multiplied = training(job).parameters - model.vocab_size * model.dim
    assert work.flops == 16 * 256 * (6 * multiplied + 12 * model.layers * model.dim * 256)


@pytest.mark.parametrize(
    ("schedule", "bubble"), [("GPipe", 1 / 9), ("1F1B", 1 / 9), ("Interleaved1F1B", 1 / 17), ("ZBV", 0.0)]
)
def test_the_bubble_of_a_pipeline(schedule: str, bubble: float) -> None:
    parallelism = {"pipeline": {"stages": 2, "schedule": schedule}}
    work = training(cpus(replicas=2, parallelism=parallelism, trainer={"batch": {"global": 8, "micro": 1}})).work
    assert work.bubble == pytest.approx(bubble)
    assert sum(work.stages) == 4


def sent(job: TrainingJob) -> dict[tuple[str, str], tuple[int, int]]:
    """Times and bytes of all tensors, by axis and collective."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for t in training(job).communication:
        times, size = found.get((t.axis, t.collective), (0, 0))
        found[t.axis, t.collective] = (times + t.times, size + t.bytes)
    return found


def test_tokens_are_sent_to_their_experts_and_back() -> None:
    half, found = 8 * 256, sent(moe(2, parallelism={"expert": 2}))
    assert found[("expert", "all-to-all")] == (16, 16 * half * 2 * 128 * 4 // 2)
    dense = 4 * (training(moe()).parameters - STACKS)
    assert found[("expert", "reduce-scatter")] == (2, dense // 2)


def test_a_token_passes_through_its_experts_only() -> None:
    found = training(moe())
    assert found.active_parameters == found.parameters - STACKS * 6 // 8
    multiplied = found.active_parameters - 256 * 128
    assert found.work.flops == 16 * 256 * (6 * multiplied + 12 * 4 * 128 * 256)


def test_one_rank_sends_nothing() -> None:
    assert sent(cpus()) == {}


def test_replicas_reduce_gradients_once() -> None:
    size = 4 * training(cpus()).parameters
    assert sent(cpus(replicas=4)) == {("replicate", "all-reduce"): (1, round(size * 2 * 3 / 4))}


@pytest.mark.parametrize(("limit", "scatters"), [(None, 2), ("64Gi", 1)])
def test_shards_gather_parameters_and_scatter_gradients_for_each_micro_batch_or_once(
    limit: str | None, scatters: int
) -> None:
    job = cpus(
        limit,
        replicas=4,
        parallelism={"data": {"mode": "hsdp", "shard": 2}},
        trainer={"batch": {"global": 8, "micro": 1}},
    )
    size, model = 4 * training(cpus()).parameters, decoder(cpus())
    ends = 4 * (2 * model.vocab_size + 1) * model.dim  # gathered in the forward pass only
    assert sent(job) == {
        ("shard", "all-gather"): (4 + 2, (4 * (size - ends) + 2 * ends) // 2),
        ("shard", "reduce-scatter"): (2 * scatters, scatters * size // 2),
        ("replicate", "all-reduce"): (1, size // 2),
    }


def test_tensor_ranks_exchange_in_every_block() -> None:
    whole = 16 * 256 * 128 * 4
    times = 4 * 4 + 2
    loss = 2 * 16 * 256 * 4
    job = cpus(replicas=2, parallelism={"tensor": 2})
    assert sent(job) == {
        ("tensor", "all-gather"): (times + 1, times * whole // 2 + loss),
        ("tensor", "reduce-scatter"): (times, times * whole // 2),
    }


def test_context_ranks_exchange_queries_keys_values_and_results() -> None:
    part = 16 * 128 * 128 * 4
    job = cpus(replicas=2, parallelism={"context": 2})
    assert sent(job)[("context", "all-to-all")] == (32, 32 * part // 2)
    assert sent(job)[("context", "all-reduce")] == (1, 4 * training(job).parameters)


def test_stages_send_activations_and_gradients() -> None:
    job = cpus(replicas=2, parallelism={"pipeline": {"stages": 2}}, trainer={"batch": {"global": 8, "micro": 2}})
    assert sent(job) == {("pipeline", "point-to-point"): (4, 4 * 2 * 256 * 128 * 4)}


def test_the_last_rank_of_zbv_sends_nothing_to_itself() -> None:
    pipeline = {"stages": 2, "schedule": "ZBV"}
    job = cpus(replicas=2, parallelism={"pipeline": pipeline}, trainer={"batch": {"global": 8, "micro": 1}})
    assert sent(job)[("pipeline", "point-to-point")][0] == 2 * 8


@pytest.mark.parametrize(
    ("axis", "procs", "crosses"),
    [
        ("tensor", 4, False),
        ("tensor", 2, True),
        ("shard", 8, False),
        ("shard", 4, True),
        ("replicate", 8, True),
        ("tensor", 6, True),
    ],
)
def test_axes_that_cross_workers(axis: str, procs: int, crosses: bool) -> None:
    assert crosses_workers(Mesh(replicate=3, shard=2, tensor=4), axis, procs) is crosses


def test_a_program_of_the_user_is_not_estimated() -> None:
    found = estimate(make_job(workers={"resources": {"limits": {"memory": "1Mi"}}}))
    assert found.training is None
    assert found.problems == ()
    assert found.workers.ranks == 2


def test_an_estimate_survives_a_round_trip_through_json() -> None:
    found = estimate(gpus("8b", 1, {}))
    value = found.to_dict()
    fit, host = value["training"]["fit"], value["training"]["host"]
    assert host["memory"].pop("total") == 0
    assert fit["fits"] is False
    assert fit["memory"].pop("total") == found.training.fit.memory.total  # type: ignore[union-attr]
    fit.pop("fits")
    assert Estimate.model_validate(value) == found


def test_sizes_from_an_older_checkpoint_are_completed() -> None:
    """Its version had no heads of their own width, and no rotary base: each had one value, which is the default now."""
    family, shape = LlamaFamily(), DataShape(256, 16, None, None)
    config = family.resolve({"preset": "nano"}, shape)
    new = ("headDim", "ropeTheta", "normEps", "tiedEmbeddings", "qkNorm")
    older = {field: value for field, value in config.to_dict().items() if field not in new}
    assert family.completed(older) == config.to_dict()
    assert family.completed({"name": "mlp", "hiddenSizes": [4]}) == {"name": "mlp", "hiddenSizes": [4]}


def test_an_evaluation_needs_neither_gradients_nor_optimizer_state() -> None:
    volume: dict[str, Any] = {"volume": {"emptyDir": {}}}
    sizes: dict[str, Any] = {"replicas": 2, "procs": 1, "parallelism": {"data": FSDP}, "checkpoint": volume}
    trained = memory(cpus(**sizes))
    only = memory(cpus(**sizes, trainer={"task": "evaluate"}))
    assert (only.gradients, only.optimizer, only.checkpoint) == (0, 0, 0)
    assert only.weights == trained.weights
    assert only.total < trained.total
    sent = training(cpus(**sizes, trainer={"task": "evaluate"})).communication
    assert {traffic.what for traffic in sent} == {"parameters", "embedding and head"}
    # Explanations compute gradients.
    explained = memory(cpus(checkpoint=volume, trainer={"task": "evaluate", "explain": {}}))
    assert explained.gradients > 0


def test_the_gradients_of_single_samples_count_and_limit_the_micro_batch() -> None:
    privacy = {"epsilon": 3, "delta": 1e-6}
    checkpoint: dict[str, Any] = {"volume": {"emptyDir": {}}}
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 32}
    shape = {"model": {"name": "llama", "preset": "tiny"}, "batch": {"global": 512}, "data": data}
    private = cpus(trainer={**shape, "privacy": privacy}, checkpoint=checkpoint)
    plain = cpus(trainer=shape, checkpoint=checkpoint)
    config, parameters = resolve(private), training(private).parameters
    assert 1 < config.micro_batch < resolve(plain).micro_batch
    assert config.micro_batch * parameters <= SAMPLE_GRADIENT_SCALARS < 2 * config.micro_batch * parameters
    gradients = memory(private).gradients
    assert gradients - FULL_BYTES * parameters == FULL_BYTES * (config.micro_batch + 1) * parameters
    large = cpus(
        trainer={**shape, "model": {"name": "llama", "preset": "8b"}, "privacy": privacy}, checkpoint=checkpoint
    )
    assert resolve(large).micro_batch == 1
    assert FULL_BYTES * 2 * training(large).parameters < memory(large).gradients
