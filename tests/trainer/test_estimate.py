"""Estimates of memory and communication against measurements, and of parameters against the trainer's count."""

import json
from collections import Counter
from typing import Any

import pytest

from tests.support.run_config import make_config
from tests.trainer.pods import Starter, finish
from trainyard.config import RunConfig
from trainyard.sizing import peak_memory
from trainyard.sizing.memory import Memory, server_memory
from trainyard.sizing.peak_memory import rank_memory
from trainyard.sizing.traffic import rank_traffic
from trainyard_trainer.data.samples import prepare
from trainyard_trainer.parallel import loss
from trainyard_trainer.parallel.parallelize import parameter_count

TOLERANCE = 0.15
MIB = 2**20

MODEL = {"dim": 512, "layers": 4, "heads": 8, "kvHeads": 4, "ffnDim": 1536}
"""50 MiB of parameters, so that a process' small change does not matter."""
VOCABULARY = {"tokenizer": "bpe", "vocabSize": 8192, "sequenceLength": 128}
SMALL = {"dim": 128, "ffnDim": 256, "layers": 1}
MOE = {"name": "moe", "dim": 256, "ffnDim": 512, "experts": 8, "expertsPerToken": 2}
PIPELINE = {"stages": 2, "schedule": "1F1B"}

LAYOUTS: tuple[tuple[str, int, dict[str, Any], dict[str, Any]], ...] = (
    ("one process", 1, {}, {}),
    ("sgd", 1, {}, {"optimizer": {"name": "sgd", "momentum": 0.9, "weightDecay": 0.1}}),
    ("muon, accumulated", 1, {}, {"optimizer": {"name": "muon"}, "batch": {"global": 2, "micro": 1}}),
    ("recomputed", 1, {}, {"activationCheckpointing": "full"}),
    ("selective", 1, {}, {"activationCheckpointing": "selective"}),
    ("ddp", 2, {}, {}),
    ("fsdp", 2, {"data": {"mode": "fsdp"}}, {}),
    ("fsdp, accumulated", 2, {"data": {"mode": "fsdp"}}, {"batch": {"global": 4, "micro": 1}}),
    ("fsdp with a large vocabulary", 2, {"data": {"mode": "fsdp"}}, {"data": VOCABULARY, "model": {"layers": 2}}),
    ("tensor with a large vocabulary", 2, {"tensor": 2}, {"data": VOCABULARY, "model": {"layers": 2}}),
    ("tensor", 2, {"tensor": 2}, {}),
    (
        "an evaluation with all logits",
        4,
        {"tensor": 4},
        {"data": {**VOCABULARY, "evalFraction": 0.0001}, "model": SMALL, "batch": {"global": 16}},
    ),
    ("context", 2, {"context": 2}, {}),
    ("moe", 1, {}, {"model": MOE}),
    ("moe, recomputed", 1, {}, {"model": MOE, "activationCheckpointing": "full"}),
    ("moe with muon", 1, {}, {"model": MOE, "optimizer": {"name": "muon"}}),
    ("expert", 2, {"expert": 2}, {"model": MOE}),
    ("moe, selective", 1, {}, {"model": MOE, "activationCheckpointing": "selective", "batch": {"global": 16}}),
    ("moe, fsdp, accumulated", 2, {"data": {"mode": "fsdp"}}, {"model": MOE, "batch": {"global": 4, "micro": 1}}),
    ("expert and fsdp", 4, {"data": {"mode": "fsdp"}, "expert": 2}, {"model": MOE, "batch": {"global": 16}}),
    ("bfloat16, experts", 1, {}, {"model": MOE, "precision": "bfloat16", "batch": {"global": 16}}),
    ("bfloat16, ddp", 2, {}, {"precision": "bfloat16", "batch": {"global": 16}}),
    ("bfloat16, tensor", 2, {"tensor": 2}, {"precision": "bfloat16"}),
    (
        "bfloat16, fsdp, accumulated",
        2,
        {"data": {"mode": "fsdp"}},
        {"precision": "bfloat16", "batch": {"global": 4, "micro": 1}},
    ),
    ("bfloat16", 1, {}, {"precision": "bfloat16"}),
    ("bfloat16, fsdp", 2, {"data": {"mode": "fsdp"}}, {"precision": "bfloat16"}),
    ("pipeline", 2, {"pipeline": PIPELINE}, {"batch": {"global": 4, "micro": 1}}),
)


def config_of(processes: int, parallelism: dict[str, Any], trainer: dict[str, Any]) -> RunConfig:
    # The second step has the states of the optimizer, and with DistributedDataParallel the third its lasting buckets.
    default = {
        "batch": {"global": 4},
        "data": {"sequenceLength": 128},
        "stop": {"steps": 3 if processes > 1 and parallelism.keys() <= {"context"} else 2},
    }
    optimizer = trainer.get("optimizer", {"name": "adamw"})
    rest = {**default, **trainer, "optimizer": {"learningRate": 0.001, **optimizer}}
    return make_config(processes, parallelism, **{**rest, "model": {**MODEL, **trainer.get("model", {})}})


@pytest.mark.parametrize(
    ("name", "processes", "parallelism", "trainer"), LAYOUTS, ids=[layout[0] for layout in LAYOUTS]
)
def test_memory_is_as_estimated(
    start: Starter, name: str, processes: int, parallelism: dict[str, Any], trainer: dict[str, Any]
) -> None:
    config = config_of(processes, parallelism, trainer)
    for rank, measured in measure(start, config, processes).items():
        assert_close(measured, rank_memory(config, config.mesh.coordinate(rank).pipeline, gpu=False))


def test_memory_of_a_parameter_server_is_as_estimated(start: Starter) -> None:
    config = config_of(2, {"data": {"mode": "parameterServer"}}, {})
    *workers, server = measure(start, config, 2).values()
    for worker in workers:
        assert_close(worker, rank_memory(config, 0, gpu=False))
    assert_close(server, server_memory(config))


def measure(start: Starter, config: RunConfig, processes: int) -> dict[int, dict[str, int]]:
    """Return what each rank has measured in its last step, in order of ranks."""
    pods = start(config, 1, processes, entry="tests.trainer.memory:main")
    assert finish(pods, 120) == [0] * len(pods), pods[0].stderr
    found = {}
    for line in "".join(pod.stdout for pod in pods).splitlines():
        if '"memory"' in line:
            measured = json.loads(line)["memory"]
            found[measured["rank"]] = measured
    assert len(found) == processes + config.servers
    return dict(sorted(found.items()))


def assert_close(measured: dict[str, int], estimated: Memory) -> None:
    peak = max(measured.get(moment, 0) for moment in ("passes", "step", "evaluation"))
    assert peak > 100 * MIB, "large enough to tell"
    assert estimated.total == pytest.approx(peak, rel=TOLERANCE)
    assert estimated.weights == pytest.approx(measured["weights"], rel=0.01)
    assert estimated.optimizer == pytest.approx(measured["optimizer"], rel=0.01)


def test_the_estimate_knows_the_chunks_of_the_loss() -> None:
    assert peak_memory.LOSS_CHUNK == loss.CHUNK


FULL = {"activationCheckpointing": "full"}


@pytest.mark.parametrize(
    ("parallelism", "trainer"),
    [
        ({}, {"batch": {"global": 8, "micro": 2}}),
        ({"data": {"mode": "fsdp"}}, {"batch": {"global": 8, "micro": 2}}),
        ({"tensor": 2}, {}),
        ({"tensor": 2}, FULL),
        ({"context": 2}, {}),
        ({"context": 2}, FULL),
        ({"pipeline": PIPELINE}, {}),
        ({"pipeline": {"stages": 2, "schedule": "ZBV"}}, {}),
    ],
    ids=str,
)
def test_ranks_send_as_much_as_estimated(start: Starter, parallelism: dict[str, Any], trainer: dict[str, Any]) -> None:
    model = {"layers": 4, "kvHeads": 4}
    config = make_config(2, parallelism, **{"model": model, "batch": {"global": 8}, "stop": {"steps": 2}, **trainer})
    (pod,) = start(config, 1, 2, entry="tests.trainer.traffic:main")
    assert finish([pod], 120) == [0], pod.stderr
    lines = [json.loads(line)["sent"] for line in pod.stdout.splitlines() if '"sent"' in line]
    assert len(lines) == 2
    for line in lines:
        estimated = rank_traffic(config, config.mesh.coordinate(line["rank"]).pipeline, procs_per_worker=2)
        expected: Counter[str] = Counter()
        for traffic in estimated:
            expected[traffic.collective] += traffic.bytes
        assert expected.items() <= line.items()


def test_experts_are_sent_about_as_much_as_estimated(start: Starter) -> None:
    model = {"name": "moe", "layers": 4, "experts": 4, "expertsPerToken": 2}
    config = make_config(2, {"expert": 2}, model=model, batch={"global": 64}, stop={"steps": 2})
    (pod,) = start(config, 1, 2, entry="tests.trainer.traffic:main")
    assert finish([pod], 120) == [0], pod.stderr
    lines = [json.loads(line)["sent"] for line in pod.stdout.splitlines() if '"sent"' in line]
    (estimated,) = [t.bytes for t in rank_traffic(config, 0, procs_per_worker=2) if t.collective == "all-to-all"]
    # The load of each expert is not known in advance; summed over both ranks it is even.
    assert sum(line["all-to-all"] for line in lines) == pytest.approx(2 * estimated, rel=0.1)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"layers": 3, "kvHeads": 4},
        {"dim": 48, "heads": 3, "kvHeads": 1, "ffnDim": 100, "layers": 5},
        {"name": "moe"},
    ],
)
def test_parameters_of_a_decoder_are_those_of_the_trainer(model: dict[str, Any]) -> None:
    config = make_config(model=model)
    assert config.family.parameters(config.model) == parameter_count(config, prepare(config))


def test_parameters_of_an_mlp_are_those_of_the_trainer() -> None:
    data = {"source": "table", "builtin": "digits"}
    config = make_config(model={"name": "mlp", "hiddenSizes": [32, 16]}, data=data, batch={"global": 8}, replace=True)
    assert config.family.parameters(config.model) == parameter_count(config, prepare(config))
