"""Estimates of memory and communication against measurements, and of parameters against the trainer's count."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.run_config import make_config
from tests.trainer import faults
from tests.trainer.layouts import extended
from tests.trainer.memory import Meter
from tests.trainer.pods import Pod, Starter, finish, starter
from tests.trainer.saved_models import with_base
from trainyard.config import MemoryUse, RunConfig
from trainyard.protocol import constants
from trainyard.resource.spec import TrainingJobSpec, Workers
from trainyard.sizing import peak_memory
from trainyard.sizing.fit import fit, server_fit
from trainyard.sizing.model_size import parameters, trained_parameters
from trainyard.sizing.process_memory import LAUNCHER_BYTES
from trainyard.sizing.traffic import rank_traffic
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.parallel import loss
from trainyard_trainer.parallel.parallelize import parameter_count

TOLERANCE = 0.1
MIB = 2**20
STEPS, SAVED_AFTER, LAST = 10, 14, 16
"""Steps before the first result, the step after which a checkpoint is written, and the last step."""

MODEL = {"dim": 512, "layers": 4, "heads": 8, "kvHeads": 4, "ffnDim": 1536}
"""50 MiB of parameters, so that a process' small change does not matter."""
VOCABULARY = {"tokenizer": "bpe", "vocabSize": 8192, "sequenceLength": 128}
MOE = {"name": "moe", "dim": 256, "ffnDim": 512, "experts": 8, "expertsPerToken": 2}
SMALL = {"dim": 128, "ffnDim": 256, "layers": 1}
LORA = {"dim": 768, "layers": 6, "ffnDim": 2048, "lora": {"rank": 8}}
"""150 MiB of parameters, of which 1 % are trained."""
FSDP: dict[str, Any] = {"data": {"mode": "fsdp"}}
ACCUMULATED: dict[str, Any] = {"batch": {"global": 4, "micro": 1}}
PRIVATE: dict[str, Any] = {
    "privacy": {"epsilon": 50, "delta": 1e-6},
    "model": {"dim": 256, "ffnDim": 768},
    "batch": {"global": 16, "micro": 8},
}
BFLOAT16: dict[str, Any] = {"precision": "bfloat16", "data": {"sequenceLength": 16}}
"""Few tokens: a processor without instructions for bfloat16 multiplies some matrices fifty times slower than others."""
PIPELINE = {"stages": 2, "schedule": "1F1B"}

Case = tuple[str, int, dict[str, Any], dict[str, Any]]
LAYOUTS: tuple[Case, ...] = (
    ("moe", 1, {}, {"model": MOE}),
    ("bfloat16", 1, {}, {**BFLOAT16, "batch": {"global": 2}}),
)
MORE_LAYOUTS: tuple[Case, ...] = (
    ("adapters", 1, {}, {"model": LORA}),
    ("one process", 1, {}, {}),
    ("fsdp, accumulated", 2, FSDP, ACCUMULATED),
    ("ddp", 2, {}, {}),
    ("tensor", 2, {"tensor": 2}, {}),
    ("context", 2, {"context": 2}, {}),
    ("pipeline", 2, {"pipeline": PIPELINE}, ACCUMULATED),
    ("recomputed", 1, {}, {"activationCheckpointing": "full"}),
    ("fsdp", 2, FSDP, {}),
    ("fsdp, accumulated, complete", 2, FSDP, ACCUMULATED),
    ("expert", 2, {"expert": 2}, {"model": MOE}),
    ("bfloat16, fsdp, accumulated", 2, FSDP, {**BFLOAT16, **ACCUMULATED}),
    ("sgd", 1, {}, {"optimizer": {"name": "sgd", "momentum": 0.9, "weightDecay": 0.1}}),
    ("muon, accumulated", 1, {}, {"optimizer": {"name": "muon"}, "batch": {"global": 2, "micro": 1}}),
    ("selective", 1, {}, {"activationCheckpointing": "selective"}),
    ("fsdp with a large vocabulary", 2, FSDP, {"data": VOCABULARY, "model": {"layers": 2}}),
    ("tensor with a large vocabulary", 2, {"tensor": 2}, {"data": VOCABULARY, "model": {"layers": 2}}),
    (
        "an evaluation with all logits",
        4,
        {"tensor": 4},
        {"data": {**VOCABULARY, "evalFraction": 0.0001}, "model": SMALL, "batch": {"global": 16}},
    ),
    ("moe, recomputed", 1, {}, {"model": MOE, "activationCheckpointing": "full"}),
    ("moe, selective", 1, {}, {"model": MOE, "activationCheckpointing": "selective", "batch": {"global": 16}}),
    ("expert and fsdp", 4, {**FSDP, "expert": 2}, {"model": MOE, "batch": {"global": 16}}),
    ("private", 1, {}, PRIVATE),
    ("private, two ranks", 2, {}, PRIVATE),
    ("bfloat16, ddp", 2, {}, BFLOAT16),
    ("bfloat16, fsdp", 2, FSDP, BFLOAT16),
    ("bfloat16, tensor", 2, {"tensor": 2}, BFLOAT16),
    ("adapters, bfloat16", 1, {}, {"model": LORA, **BFLOAT16}),
    ("adapters, fsdp, accumulated", 2, FSDP, {"model": LORA, **ACCUMULATED}),
    ("adapters, bfloat16, fsdp", 2, FSDP, {"model": LORA, **BFLOAT16}),
)
"""Layouts of `make test-all`; each of `LAYOUTS` represents some of them."""


def config_of(name: str, processes: int, parallelism: dict[str, Any], trainer: dict[str, Any]) -> RunConfig:
    """Return a run whose memory is scarce, so that freed memory is returned, and which saves one checkpoint."""
    default = {"batch": {"global": 4}, "data": {"sequenceLength": 128}, "stop": {"steps": LAST}}
    optimizer = trainer.get("optimizer", {"name": "adamw"})
    rest = {**default, **trainer, "optimizer": {"learningRate": 0.001, **optimizer}}
    config = make_config(
        processes,
        parallelism,
        checkpoint={"everySteps": SAVED_AFTER, "keep": 1},
        **{**rest, "model": {**MODEL, **trainer.get("model", {})}},
    )
    gradients: Literal["sharded", "complete"] = "complete" if "complete" in name else "sharded"
    return config.replace(memory_use=MemoryUse(gradients=gradients, keep_freed=False))


@pytest.fixture(scope="module")
def start(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Starts pods from a process that has imported compiled modules, as those of an image are.

    The first one may have compiled them, and so have 50 MiB more, which each of its pods would inherit.
    """
    with starter(tmp_path_factory.mktemp("measured")) as starts:
        yield starts


# Extended: `test_memory_is_as_estimated` represents it: a server is the optimizer and a copy of the parameters.
@pytest.mark.extended
def test_memory_of_a_parameter_server_is_as_estimated(start: Starter) -> None:
    config = config_of("server", 1, {"data": {"mode": "parameterServer"}}, {}).replace(checkpoint=None)
    pods = start(config)
    measured = Meter(pods, start.zygote.pid).until_end()
    assert finish(pods) == [0, 0], pods[0].stderr
    server = server_fit(TrainingJobSpec(), config)
    assert server is not None
    # Both pods of this test share the imports of the process that they were forked from.
    needed = fit(TrainingJobSpec(), config).needed + server.needed - LAUNCHER_BYTES
    assert needed == pytest.approx(measured.total, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "processes", "parallelism", "trainer"),
    [*LAYOUTS, *extended(MORE_LAYOUTS)],
    ids=[case[0] for case in (*LAYOUTS, *MORE_LAYOUTS)],
)
def test_memory_is_as_estimated(
    start: Starter, tmp_path: Path, name: str, processes: int, parallelism: dict[str, Any], trainer: dict[str, Any]
) -> None:
    """Train for 16 steps with a checkpoint after 14, and compare the peak memory of the worker before and after it."""
    if "lora" in trainer.get("model", {}):
        trainer = {**trainer, "model": with_base({**MODEL, **trainer["model"]}, tmp_path / "base")}
    config = config_of(name, processes, parallelism, trainer)
    env = {constants.ENV_CHECKPOINTS: str(tmp_path), faults.ENV_WAIT_FOR: str(tmp_path)}
    pods = start(config, 1, processes, entry="tests.trainer.faults:wait_around_checkpoint", env=env)
    meter = Meter(pods, start.zygote.pid)
    training = meter.until_step(STEPS)
    (tmp_path / "before").touch()
    # The processes that have written the checkpoint wait to be looked at, however busy the machine is.
    meter.until(lambda: SAVED_AFTER in catalog.complete_steps(tmp_path))
    (tmp_path / "after").touch()
    saving = meter.until_end()
    assert finish(pods) == [0], pods[0].stderr
    spec = TrainingJobSpec(workers=Workers(procs_per_worker=processes))
    without, with_checkpoint = fit(spec, config.replace(checkpoint=None)), fit(spec, config)
    assert without.memory.total > 100 * MIB, "large enough to tell"
    assert without.needed == pytest.approx(training.total, rel=TOLERANCE)
    assert with_checkpoint.needed == pytest.approx(saving.total, rel=TOLERANCE)


def test_the_estimate_knows_the_chunks_of_the_loss() -> None:
    assert peak_memory.LOSS_CHUNK == loss.CHUNK


FULL = {"activationCheckpointing": "full"}
ADAPTED = {"model": {"layers": 4, "kvHeads": 4, "lora": {"rank": 2}}, "batch": {"global": 8, "micro": 2}}


@pytest.mark.parametrize(
    ("parallelism", "trainer"),
    [
        (FSDP, {"batch": {"global": 8, "micro": 2}}),
        ({"tensor": 2}, FULL),
        ({"context": 2}, {}),
        ({"pipeline": PIPELINE}, {}),
        *extended(
            [
                ({}, {"batch": {"global": 8, "micro": 2}}),
                ({"tensor": 2}, {}),
                ({"context": 2}, FULL),
                ({"pipeline": {"stages": 2, "schedule": "ZBV"}}, {}),
                ({}, ADAPTED),
                (FSDP, ADAPTED),
            ]
        ),
    ],
    ids=str,
)
def test_ranks_send_as_much_as_estimated(
    start: Starter, tmp_path: Path, parallelism: dict[str, Any], trainer: dict[str, Any]
) -> None:
    model = {"layers": 4, "kvHeads": 4}
    if "lora" in trainer.get("model", {}):
        trainer = {**trainer, "model": with_base(trainer["model"], tmp_path / "base")}
    config = make_config(2, parallelism, **{"model": model, "batch": {"global": 8}, "stop": {"steps": 2}, **trainer})
    (pod,) = start(config, 1, 2, entry="tests.trainer.traffic:main")
    assert finish([pod], 120) == [0], pod.stderr
    assert_sent(pod, config)


def test_complete_gradients_are_sent_once_per_step(start: Starter) -> None:
    config = make_config(2, FSDP, model={"layers": 4}, batch={"global": 8, "micro": 2}, stop={"steps": 2})
    sharded = [t.bytes for t in rank_traffic(config, 0, 2) if t.collective == "reduce-scatter"]
    config = config.replace(memory_use=MemoryUse(gradients="complete"))
    complete = [t.bytes for t in rank_traffic(config, 0, 2) if t.collective == "reduce-scatter"]
    assert complete == [size // 2 for size in sharded]
    (pod,) = start(config, 1, 2, entry="tests.trainer.traffic:main")
    assert finish([pod], 120) == [0], pod.stderr
    assert_sent(pod, config)


def assert_sent(pod: Pod, config: RunConfig) -> None:
    """Compare what both ranks of a pod have sent in a step with the estimate."""
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
        {"headDim": 6, "lora": {"rank": 3}, "from": {"path": "/base"}},
        {"lora": {"targets": ["v", "down"]}, "from": {"path": "/base"}},
    ],
)
def test_parameters_of_a_decoder_are_those_of_the_trainer(model: dict[str, Any]) -> None:
    config = make_config(model=model)
    assert parameters(config) == parameter_count(config, load_samples(config))
    assert trained_parameters(config, 0).total == parameter_count(config, load_samples(config), trained=True)


def test_parameters_of_an_mlp_are_those_of_the_trainer() -> None:
    data = {"source": "table", "builtin": "digits"}
    config = make_config(model={"name": "mlp", "hiddenSizes": [32, 16]}, data=data, batch={"global": 8}, replace=True)
    assert config.family.parameters(config.model) == parameter_count(config, load_samples(config))
