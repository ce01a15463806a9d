"""The API types: defaults, JSON names, and the configuration that a spec resolves to."""

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


def test_defaults_of_the_spec_are_the_documented_ones() -> None:
    spec = make_job().spec
    assert spec.suspend is False
    assert (spec.restart_policy.max_restarts, spec.restart_policy.backoff.initial_seconds) == (3, 1)
    assert (spec.restart_policy.backoff.max_seconds, spec.restart_policy.backoff.factor) == (300, 2.0)
    assert spec.workers.procs_per_worker == "auto"


def test_json_is_camel_case_and_python_is_snake_case() -> None:
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


def test_a_job_round_trips_through_json() -> None:
    job = make_job(trainer=trainer_spec(), env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}])
    assert TrainingJob.from_dict(job.to_dict()) == job


def test_unread_metadata_is_preserved() -> None:
    body = make_manifest()
    body["metadata"]["annotations"] = {"a": "b"}
    assert TrainingJob.model_validate(body).to_dict()["metadata"]["annotations"] == {"a": "b"}


def test_api_objects_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_job().spec.suspend = True  # type: ignore[misc]


def test_unknown_fields_are_refused_in_what_a_user_writes() -> None:
    with pytest.raises(ValidationError, match="colour"):
        TrainingJob.model_validate(make_manifest(colour="red"))


def test_unknown_fields_of_a_stored_object_are_ignored_and_named() -> None:
    """Another version of the CRD may have admitted them."""
    body = make_manifest(
        colour="red",
        workers={"speed": 3, "template": {"spec": {"anything": {"goes": 1}}}},
        trainer=trainer_spec(model={"name": "llama", "preset": "nano", "mood": "good"}),
        restartPolicy={
            "rules": [{"onReasons": ["Hang"], "action": "Fail"}, {"onReasons": ["X"], "action": "Fail", "a": 1}]
        },
    )
    body["status"] = {
        "attempt": 2,
        "phase": "Dreaming",
        "new": {"a": 1},
        "goodput": {"activity": "Zen", "accountedAt": "2030-01-01T12:00:00Z"},
    }
    job = TrainingJob.from_dict(body)
    unknown = ("spec.colour", "spec.restartPolicy.rules[1].a", "spec.trainer.model.mood", "spec.workers.speed")
    assert job.unknown_fields == unknown
    assert (job.status.attempt, job.status.phase) == (2, None)
    assert job.replace(status=job.status).unknown_fields == job.unknown_fields


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
def test_processes_per_worker_default_to_the_number_of_gpus(job: TrainingJob, procs: int) -> None:
    assert job.spec.procs_per_worker == procs
    assert job.spec.world_size == 2 * procs


def test_a_gpu_limit_that_is_not_a_whole_number_is_reported() -> None:
    assert spec_problems(with_gpus("8k")) == [
        "spec.workers.resources.limits[nvidia.com/gpu]: must be a whole number for procsPerWorker auto; "
        "correct it, or set procsPerWorker"
    ]


def test_a_batch_that_does_not_fit_a_scaled_group_is_reported() -> None:
    (problem,) = spec_problems(make_job(replicas=3, trainer=trainer_spec()))
    assert problem.startswith("spec.trainer.batch.global: 16 must be a multiple of the 3 data-parallel ranks ")
    with pytest.raises(ValueError, match="must be a multiple of the 3 data-parallel ranks"):
        resolve(make_job(replicas=3, trainer=trainer_spec()))


def test_a_user_program_has_no_configuration_to_resolve() -> None:
    assert spec_problems(make_job()) == []
    with pytest.raises(ValueError, match="nothing to resolve"):
        resolve(make_job())


def test_sizes_override_those_of_the_preset() -> None:
    model = {"name": "llama", "preset": "nano", "layers": 2}
    config = resolve(make_job(trainer=trainer_spec(model=model))).model.to_dict()
    assert [config[size] for size in ("dim", "layers", "heads", "vocabSize")] == [128, 2, 4, 256]


def test_the_vocabulary_size_is_that_of_the_tokenizer() -> None:
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
def test_micro_batches_add_up_to_the_share_of_a_rank(replicas: int, procs: int, share: int, length: int) -> None:
    world = replicas * procs
    config = run_config(replicas=replicas, procs=procs, length=length, **{"global": share * world})
    assert share % config.micro_batch == 0
    assert config.micro_batch == 1 or config.micro_batch * length <= MICRO_BATCH_TOKENS
    larger = [
        m for m in range(config.micro_batch + 1, share + 1) if share % m == 0 and m * length <= MICRO_BATCH_TOKENS
    ]
    assert larger == [], "auto means the largest that fits"


@given(micro=st.integers(1, 64), accumulation=st.integers(1, 64), world=st.integers(1, 64))
def test_a_given_micro_batch_is_used_unchanged(micro: int, accumulation: int, world: int) -> None:
    config = run_config(replicas=world, **{"global": micro * accumulation * world, "micro": micro})
    assert config.micro_batch == micro


def test_the_run_configuration_round_trips_through_json() -> None:
    config = run_config(**{"global": 16})
    assert RunConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config


@given(
    name=st.from_regex(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True),
    attempt=st.integers(1, 99_999),
    index=st.integers(0, 9_999),
)
def test_pod_names_of_the_longest_job_name_fit_a_host_name(name: str, attempt: int, index: int) -> None:
    assume(len(name) <= 50)
    assert len(make_job(name).pod_name(attempt, index)) <= 63


# --- status ---------------------------------------------------------------------------------------------------


def test_timestamps_are_written_in_utc_to_the_second() -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    assert Progress(updated_at=moment).to_dict()["updatedAt"] == "2030-01-02T03:04:05Z"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_left_out(value: float) -> None:
    """JSON has no NaN or Inf: an API server would refuse the whole status."""
    progress = Progress(step=3, loss=value, grad_norm=value, tokens_per_second=5.0)
    assert progress.to_dict() == {"attempt": 0, "step": 3, "tokensPerSecond": 5.0}


@pytest.mark.parametrize(("kind", "finished"), [("Succeeded", True), ("Failed", True), ("Running", False)])
def test_a_job_has_finished_if_succeeded_or_failed_is_true(kind: str, finished: bool) -> None:
    condition = Condition(type=kind, status="True", reason="x", last_transition_time=datetime(2030, 1, 1, tzinfo=UTC))
    status = TrainingJobStatus(conditions=(condition,))
    assert status.finished is finished
    assert status.is_true(ConditionType(kind))
    assert not status.is_true(ConditionType.SUSPENDED)


def test_every_api_type_refuses_unknown_fields() -> None:
    def all_types(model: type[ApiModel]) -> set[type[ApiModel]]:
        return {model}.union(*(all_types(child) for child in model.__subclasses__()))

    assert len(all_types(ApiModel)) > 20
    assert {m for m in all_types(ApiModel) if m.model_config.get("extra") != "forbid"} == set()
