"""The types of the resource: defaults, names on the wire, and what a worker's configuration resolves to."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.builders import make_job, make_manifest, trainer_spec
from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.protocol.progress import Progress
from trainyard.resolve import MICRO_BATCH_TOKENS, resolve, spec_problems
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Condition, ConditionType, TrainingJobStatus


def with_gpus(limit: Any, **workers: Any) -> TrainingJob:
    return make_job(workers={"resources": {"limits": {"nvidia.com/gpu": limit}}, **workers})


def run_config(*, replicas: int = 2, procs: int = 1, length: int = 256, **batch: Any) -> RunConfig:
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": length}
    return resolve(
        make_job(replicas=replicas, workers={"procsPerWorker": procs}, trainer=trainer_spec(data=data, batch=batch))
    )


def test_defaults_are_those_that_are_documented() -> None:
    spec = make_job().spec
    assert spec.suspend is False
    assert (spec.restart_policy.max_restarts, spec.restart_policy.backoff.initial_seconds) == (3, 1)
    assert (spec.restart_policy.backoff.max_seconds, spec.restart_policy.backoff.factor) == (300, 2.0)
    assert spec.workers.procs_per_worker == "auto"


def test_the_wire_has_camel_case_and_python_has_snake_case() -> None:
    manifest = make_manifest(
        imagePullPolicy="Always",
        restartPolicy={"backoff": {"initialSeconds": 7}},
        trainer=trainer_spec(optimizer={"learningRate": 0.1}),
    )
    job = TrainingJob.from_dict(manifest)
    assert job.spec.image_pull_policy == "Always"
    assert job.spec.restart_policy.backoff.initial_seconds == 7
    assert job.to_dict()["spec"]["trainer"]["optimizer"]["learningRate"] == 0.1
    assert job.to_dict()["spec"]["trainer"]["batch"]["global"] == 16


def test_a_job_survives_the_way_to_the_wire_and_back() -> None:
    job = make_job(trainer=trainer_spec(), env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}])
    assert TrainingJob.from_dict(job.to_dict()) == job


def test_metadata_that_trainyard_does_not_read_passes_through() -> None:
    body = make_manifest()
    body["metadata"]["annotations"] = {"a": "b"}
    assert TrainingJob.from_dict(body).to_dict()["metadata"]["annotations"] == {"a": "b"}


def test_objects_of_the_api_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_job().spec.suspend = True  # type: ignore[misc]


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="colour"):
        make_job(colour="red")


@pytest.mark.parametrize(
    ("job", "procs"),
    [
        (make_job(), 1),
        (with_gpus(8), 8),
        (with_gpus("8"), 8),
        (with_gpus(0), 1),
        (with_gpus(8, procsPerWorker=2), 2),
        (make_job(workers={"procsPerWorker": 4}), 4),
    ],
)
def test_processes_per_worker_follow_the_gpus_unless_given(job: TrainingJob, procs: int) -> None:
    assert job.spec.procs_per_worker == procs
    assert job.spec.world_size == 2 * procs


def test_a_gpu_limit_that_is_no_number_is_a_problem_that_is_told() -> None:
    assert spec_problems(with_gpus("8k")) == [
        "spec.workers.resources.limits[nvidia.com/gpu]: must be a whole number for procsPerWorker auto; "
        "correct it, or set procsPerWorker"
    ]


def test_a_batch_that_does_not_fit_a_scaled_group_is_a_problem_that_is_told() -> None:
    (problem,) = spec_problems(make_job(replicas=3, trainer=trainer_spec()))
    assert problem.startswith("spec.trainer.batch.global: 16 must be a multiple of the 3 data-parallel ranks ")
    with pytest.raises(ValueError, match="must be a multiple of the 3 data-parallel ranks"):
        resolve(make_job(replicas=3, trainer=trainer_spec()))


def test_there_is_nothing_to_resolve_for_a_program_of_ones_own() -> None:
    assert spec_problems(make_job()) == []
    with pytest.raises(ValueError, match="nothing to resolve"):
        resolve(make_job())


def test_overrides_replace_single_sizes_of_a_preset() -> None:
    model = {"name": "llama", "preset": "nano", "layers": 2}
    config = resolve(make_job(trainer=trainer_spec(model=model))).model.to_dict()
    assert [config[size] for size in ("dim", "layers", "heads", "vocabSize")] == [128, 2, 4, 256]


def test_the_vocabulary_is_the_tokenizers() -> None:
    data = {"source": "text", "builtin": "python-stdlib", "tokenizer": "bpe", "vocabSize": 1000}
    assert resolve(make_job(trainer=trainer_spec(data=data))).model.to_dict()["vocabSize"] == 1000


@given(
    replicas=st.integers(1, 64),
    procs=st.integers(1, 8),
    share=st.integers(1, 5000),
    length=st.integers(2, 100_000),
)
@example(replicas=1, procs=1, share=4999, length=256)  # a prime share
@example(replicas=1, procs=1, share=8, length=100_000)  # one sample is more than the bound
def test_the_parts_of_a_batch_always_make_the_whole(replicas: int, procs: int, share: int, length: int) -> None:
    world = replicas * procs
    config = run_config(replicas=replicas, procs=procs, length=length, **{"global": share * world})
    assert share % config.micro_batch == 0
    assert config.micro_batch == 1 or config.micro_batch * length <= MICRO_BATCH_TOKENS
    larger = [
        m for m in range(config.micro_batch + 1, share + 1) if share % m == 0 and m * length <= MICRO_BATCH_TOKENS
    ]
    assert larger == [], "auto means the largest that fits"


@given(micro=st.integers(1, 64), accumulation=st.integers(1, 64), world=st.integers(1, 64))
def test_a_given_micro_batch_is_taken_as_it_is(micro: int, accumulation: int, world: int) -> None:
    config = run_config(replicas=world, **{"global": micro * accumulation * world, "micro": micro})
    assert config.micro_batch == micro


def test_a_workers_configuration_survives_the_way_through_its_file() -> None:
    config = run_config(**{"global": 16})
    assert RunConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config


@given(
    name=st.from_regex(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True),
    attempt=st.integers(1, 99_999),
    index=st.integers(0, 9_999),
)
def test_the_longest_name_still_fits_a_host_name(name: str, attempt: int, index: int) -> None:
    assume(len(name) <= 50)
    assert len(make_job(name).pod_name(attempt, index)) <= 63


# --- status ---------------------------------------------------------------------------------------------------


def test_moments_are_written_in_utc_to_the_second() -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    assert Progress(updated_at=moment).to_dict()["updatedAt"] == "2030-01-02T03:04:05Z"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_figure_that_json_cannot_hold_is_left_out(value: float) -> None:
    """A loss that has overflowed must not make a status that no API server accepts."""
    progress = Progress(step=3, loss=value, grad_norm=value, tokens_per_second=5.0)
    assert progress.to_dict() == {"attempt": 0, "step": 3, "tokensPerSecond": 5.0}


@pytest.mark.parametrize(("kind", "finished"), [("Succeeded", True), ("Failed", True), ("Running", False)])
def test_a_job_has_finished_if_a_condition_says_so(kind: str, finished: bool) -> None:
    condition = Condition(type=kind, status="True", reason="x", last_transition_time=datetime(2030, 1, 1, tzinfo=UTC))
    status = TrainingJobStatus(conditions=(condition,))
    assert status.finished is finished
    assert status.is_true(ConditionType(kind))
    assert not status.is_true(ConditionType.SUSPENDED)


def test_every_type_of_the_api_refuses_what_it_does_not_know() -> None:
    def all_types(model: type[ApiModel]) -> set[type[ApiModel]]:
        return {model}.union(*(all_types(child) for child in model.__subclasses__()))

    assert len(all_types(ApiModel)) > 20
    assert {m for m in all_types(ApiModel) if m.model_config.get("extra") != "forbid"} == set()
