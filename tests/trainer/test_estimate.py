"""The estimates of memory and communication against what is measured, and parameters against the trainer's count."""

import json
from collections import Counter
from typing import Any

import pytest

from tests.trainer.pods import Starter, finish, make_config
from trainyard.communication import communication
from trainyard.config import RunConfig
from trainyard.memory import Memory, rank_memory, server_memory
from trainyard.parameters import gpt_parameters, mlp_parameters
from trainyard_trainer.parallel import parameter_count
from trainyard_trainer.samples import prepare

TOLERANCE = 0.15
MIB = 2**20

MODEL = {"dim": 512, "layers": 4, "heads": 8, "kvHeads": 4, "ffnDim": 1536}
"""50 MiB of parameters, so that a process' small change does not matter."""
VOCABULARY = {"tokenizer": "bpe", "vocabSize": 8192, "sequenceLength": 128}
SMALL = {"dim": 128, "ffnDim": 256, "layers": 1}
MOE = {"name": "moe", "layers": 2, "experts": 8, "expertsPerToken": 2, "ffnDim": 768}
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
        {"data": {**VOCABULARY, "heldOut": 0.0001}, "model": SMALL, "batch": {"global": 16}},
    ),
    ("context", 2, {"context": 2}, {}),
    ("pipeline", 2, {"pipeline": PIPELINE}, {"batch": {"global": 4, "micro": 1}}),
    ("a parameter server", 2, {"data": {"mode": "parameterServer"}}, {}),
    ("a moe", 1, {}, {"model": MOE}),
    ("a moe, experts apart", 2, {"expert": 2}, {"model": MOE}),
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
def test_memory_is_what_was_estimated(
    start: Starter, name: str, processes: int, parallelism: dict[str, Any], trainer: dict[str, Any]
) -> None:
    config = config_of(processes, parallelism, trainer)
    pods = start(config, 1, processes, entry="tests.trainer.memory:main")
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    output = [line for pod in pods for line in pod.stdout.splitlines()]
    lines = [json.loads(line)["memory"] for line in output if '"memory"' in line]
    for rank in range(processes + config.servers):
        *_, last = [line for line in lines if line["rank"] == rank]
        serves = rank >= processes
        place = 0 if serves else config.mesh.coordinate(rank).pipeline
        assert_close(last, server_memory(config) if serves else rank_memory(config, place, gpu=False))


def assert_close(measured: dict[str, int], estimated: Memory) -> None:
    peak = max(measured["passes"], measured["step"], measured.get("evaluation", 0))
    assert peak > 100 * MIB, "large enough to tell"
    assert estimated.total == pytest.approx(peak, rel=TOLERANCE)
    assert estimated.weights == pytest.approx(measured["weights"], rel=0.01)
    assert estimated.optimizer == pytest.approx(measured["optimizer"], rel=0.01)


FULL = {"activationCheckpointing": "full"}


@pytest.mark.parametrize(
    ("parallelism", "trainer"),
    [
        ({}, {}),
        ({"data": {"mode": "fsdp"}}, {"batch": {"global": 8, "micro": 2}}),
        ({"tensor": 2}, {}),
        ({"tensor": 2}, FULL),
        ({"context": 2}, {}),
        ({"context": 2}, FULL),
        ({"pipeline": PIPELINE}, {}),
        ({"pipeline": {"stages": 2, "schedule": "ZBV"}}, {}),
        ({"data": {"mode": "fsdp"}}, {"model": {"name": "moe", "experts": 4, "expertsPerToken": 2}}),
    ],
    ids=str,
)
def test_ranks_send_what_was_estimated(start: Starter, parallelism: dict[str, Any], trainer: dict[str, Any]) -> None:
    model = {"layers": 4, "kvHeads": 4, **trainer.get("model", {})}
    config = make_config(2, parallelism, **{"batch": {"global": 8}, "stop": {"steps": 2}, **trainer, "model": model})
    (pod,) = start(config, 1, 2, entry="tests.trainer.traffic:main")
    assert finish([pod], 120) == [0], pod.stderr
    lines = [json.loads(line)["sent"] for line in pod.stdout.splitlines() if '"sent"' in line]
    assert len(lines) == 2
    for line in lines:
        estimated = communication(config, config.mesh.coordinate(line["rank"]).pipeline, procs_per_worker=2)
        sent = Counter[str]()
        for traffic in estimated:
            sent[traffic.collective] += traffic.bytes
        assert sent.items() <= line.items()


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"layers": 3, "kvHeads": 4},
        {"dim": 48, "heads": 3, "kvHeads": 1, "ffnDim": 100, "layers": 5},
        {"name": "moe", "experts": 5, "expertsPerToken": 3},
    ],
)
def test_parameters_of_a_gpt_are_those_of_the_trainer(model: dict[str, Any]) -> None:
    config = make_config(model=model)
    assert gpt_parameters(config.gpt) == parameter_count(config, prepare(config))


def test_parameters_of_an_mlp_are_those_of_the_trainer() -> None:
    data = {"source": "classification", "builtin": "digits"}
    config = make_config(model={"name": "mlp", "hidden": [32, 16]}, data=data, batch={"global": 8}, replace=True)
    assert mlp_parameters(config) == parameter_count(config, prepare(config))
