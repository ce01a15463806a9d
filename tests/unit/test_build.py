"""The children of a job: complete manifests as snapshots (`pytest --snapshot-update` accepts a change), and rules."""

import json
from typing import Any

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from tests.builders import make_job, served, trainer_spec
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard_operator.lifecycle.observation import job_name_of
from trainyard_operator.manifests.children import build_claim, build_config_map, build_service
from trainyard_operator.manifests.pod import build_pod

JOBS = {
    "a program of one's own": make_job(),
    "the built-in trainer": make_job(trainer=trainer_spec()),
    "everything": make_job(
        "big",
        namespace="team",
        replicas=3,
        image="example.com/mine:2",
        imagePullPolicy="Always",
        imagePullSecrets=[{"name": "registry"}],
        command=["torchrun", "train.py"],
        args=["--fast"],
        env=[
            {"name": "MODE", "value": "x"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ],
        workers={
            "procsPerWorker": 4,
            "resources": {"limits": {"nvidia.com/gpu": 4, "memory": "8Gi"}, "requests": {"cpu": "2"}},
            "template": {
                "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
                "spec": {
                    "nodeSelector": {"pool": "gpu"},
                    "tolerations": [{"key": "gpu", "operator": "Exists"}],
                    "containers": [
                        {"name": "logger", "image": "example.com/logger"},
                        {"name": "worker", "volumeMounts": [{"name": "data", "mountPath": "/data"}], "tty": True},
                    ],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                },
            },
        },
    ),
}


@pytest.fixture(params=JOBS, ids=str)
def job(request: pytest.FixtureRequest) -> TrainingJob:
    return JOBS[request.param]


def pod_of(job: TrainingJob, attempt: int = 2, index: int = 1) -> dict[str, Any]:
    return build_pod(job, attempt, index, trainer_image="example.com/trainer:1")


def worker_of(pod: dict[str, Any]) -> dict[str, Any]:
    (worker,) = [c for c in pod["spec"]["containers"] if c["name"] == constants.WORKER_CONTAINER]
    found: dict[str, Any] = worker
    return found


def env_of(job: TrainingJob, index: int = 1) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in worker_of(pod_of(job, index=index))["env"]}


def test_a_pod_is_as_it_was(job: TrainingJob, snapshot: SnapshotAssertion) -> None:
    assert yaml.safe_dump(pod_of(job)) == snapshot


def test_the_folder_for_the_checkpoints_of_a_users_program_is_created_by_its_own_image() -> None:
    security = {"runAsUser": 1000}
    job = make_job(
        "train",
        image="example.com/mine:2",
        imagePullPolicy="Always",
        checkpoint={"claim": {"size": "1Gi"}},
        workers={
            "resources": {"limits": {"nvidia.com/gpu": 4}},
            "template": {"spec": {"containers": [{"name": "worker", "securityContext": security}]}},
        },
    )
    pod = pod_of(job)
    (init,) = pod["spec"]["initContainers"]
    assert init["command"] == ["mkdir", "-p", env_of(job)["TRAINYARD_CHECKPOINTS"]]
    worker = worker_of(pod)
    for field in ("image", "imagePullPolicy", "resources", "securityContext"):
        assert init[field] == worker[field], field
    assert init["volumeMounts"][0] in worker["volumeMounts"]
    trainer = make_job(trainer=trainer_spec(), checkpoint={"claim": {"size": "1Gi"}})
    assert "initContainers" not in pod_of(trainer)["spec"]


def test_a_service_is_as_it_was(job: TrainingJob, snapshot: SnapshotAssertion) -> None:
    assert yaml.safe_dump(build_service(job)) == snapshot


def test_a_configuration_is_as_it_was(snapshot: SnapshotAssertion) -> None:
    config = build_config_map(JOBS["the built-in trainer"])
    assert config is not None
    assert config["data"][constants.CONFIG_FILE] == snapshot


def test_a_users_own_program_needs_no_configuration() -> None:
    assert build_config_map(make_job()) is None


def test_a_worker_can_read_the_configuration() -> None:
    job = make_job(trainer=trainer_spec())
    config = build_config_map(job)
    assert config is not None
    parsed = RunConfig.model_validate_json(config["data"][constants.CONFIG_FILE])
    assert (parsed.job, parsed.world_size, parsed.micro_batch) == ("job", 2, 8)
    mounts = {m["mountPath"]: m["name"] for m in worker_of(pod_of(job))["volumeMounts"]}
    volumes = {v["name"]: v for v in pod_of(job)["spec"]["volumes"]}
    assert volumes[mounts[constants.CONFIG_FOLDER]]["configMap"]["name"] == config["metadata"]["name"]
    assert env_of(job)[constants.ENV_CONFIG] == f"{constants.CONFIG_FOLDER}/{constants.CONFIG_FILE}"


def test_every_child_is_owned_by_the_job_and_goes_with_it(job: TrainingJob) -> None:
    for child in (pod_of(job), build_service(job), build_config_map(job)):
        if child is None:
            continue
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["kind"]) == ("uid-1", True, "TrainingJob")
        assert child["metadata"]["namespace"] == job.metadata.namespace
        assert child["metadata"]["labels"][constants.LABEL_JOB] == job.metadata.name


def test_a_claim_goes_with_the_job_unless_it_is_retained() -> None:
    claim = {"size": "1Gi", "storageClassName": "fast", "accessModes": ["ReadWriteOnce"]}
    manifests = [
        build_claim(make_job(trainer=trainer_spec(), checkpoint={"claim": {**claim, "retain": retain}}))
        for retain in (False, True)
    ]
    assert all(m is not None for m in manifests)
    owned, retained = (m or {} for m in manifests)
    assert owned["metadata"]["ownerReferences"][0]["kind"] == "TrainingJob"
    assert "ownerReferences" not in retained["metadata"]
    assert owned["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "fast",
    }
    assert build_claim(make_job(trainer=trainer_spec(), checkpoint={"volume": {"emptyDir": {}}})) is None


@pytest.mark.parametrize(
    ("checkpoint", "source"),
    [
        ({"volume": {"nfs": {"server": "s", "path": "/p"}}}, {"nfs": {"server": "s", "path": "/p"}}),
        ({"claim": {"size": "1Gi"}}, {"persistentVolumeClaim": {"claimName": "train"}}),
    ],
)
@pytest.mark.parametrize("trainer", [trainer_spec(), None], ids=["trainer", "a program of one's own"])
def test_checkpoints_have_a_volume_a_folder_and_time_to_be_written(
    checkpoint: dict[str, Any], source: dict[str, Any], trainer: dict[str, Any] | None
) -> None:
    job = (
        make_job("train", trainer=trainer, checkpoint=checkpoint)
        if trainer
        else make_job("train", checkpoint=checkpoint)
    )
    pod, env = pod_of(job), env_of(job)
    assert {"name": "trainyard-checkpoints", **source} in pod["spec"]["volumes"]
    assert {"name": "trainyard-checkpoints", "mountPath": "/checkpoints"} in worker_of(pod)["volumeMounts"]
    assert env["TRAINYARD_CHECKPOINTS"] == "/checkpoints/train"
    grace = "120" if trainer else None
    assert env.get("TRAINYARD_GRACE_SECONDS") == grace
    assert pod["spec"].get("terminationGracePeriodSeconds") == (int(grace) if grace else None)


@pytest.mark.parametrize("trainer", [trainer_spec(), None], ids=["trainer", "a program of one's own"])
def test_checkpoints_in_an_object_store_have_a_url_and_no_volume(trainer: dict[str, Any] | None) -> None:
    """With the namespace, since a bucket is not of one namespace as a volume is."""
    checkpoint = {"url": "s3://bucket/runs/"}
    given: dict[str, Any] = {"trainer": trainer} if trainer else {}
    job = make_job("train", checkpoint=checkpoint, **given)
    pod, env = pod_of(job), env_of(job)
    assert "trainyard-checkpoints" not in json.dumps(pod)
    assert "initContainers" not in pod["spec"]
    assert env["TRAINYARD_CHECKPOINT_URL"] == f"s3://bucket/runs/{job.metadata.namespace}/train"
    assert "TRAINYARD_CHECKPOINTS" not in env
    assert env.get("TRAINYARD_GRACE_SECONDS") == ("120" if trainer else None)
    assert build_claim(job) is None


def test_a_template_may_give_another_time_to_write_the_last_checkpoint() -> None:
    workers = {"template": {"spec": {"terminationGracePeriodSeconds": 600}}}
    job = make_job(trainer=trainer_spec(), workers=workers, checkpoint={"claim": {"size": "1Gi"}})
    assert pod_of(job)["spec"]["terminationGracePeriodSeconds"] == 600
    assert env_of(job)["TRAINYARD_GRACE_SECONDS"] == "600"


def test_the_service_selects_the_jobs_pods(job: TrainingJob) -> None:
    selector, labels = build_service(job)["spec"]["selector"], pod_of(job)["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert job_name_of(pod_of(job)) == job.metadata.name


def test_the_address_of_the_master_is_the_first_pods_name_in_the_service(job: TrainingJob) -> None:
    first = pod_of(job, index=0)
    address = f"{first['spec']['hostname']}.{first['spec']['subdomain']}.{job.metadata.namespace}.svc"
    assert first["spec"]["subdomain"] == build_service(job)["metadata"]["name"]
    env = env_of(job)
    assert env["MASTER_ADDR"] == env["PET_MASTER_ADDR"] == address
    assert env["MASTER_PORT"] == env["PET_MASTER_PORT"] == str(build_service(job)["spec"]["ports"][0]["port"])


@pytest.mark.parametrize("index", [0, 1])
def test_the_address_has_the_domain_of_the_cluster_as_in_the_hosts_file_of_the_first_pod(
    job: TrainingJob, index: int
) -> None:
    """One address for all: a program of worker 0 may send its own to the others (torch does, for checkpoints)."""
    pod = build_pod(job, 1, index, trainer_image="", cluster_domain="cluster.example")
    address = f"{job.metadata.name}-1-0.{job.metadata.name}.{job.metadata.namespace}.svc.cluster.example"
    env = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
    assert env["MASTER_ADDR"] == env["PET_MASTER_ADDR"] == address


def test_single_processes_get_their_rank_and_several_leave_it_to_torchrun() -> None:
    env = env_of(make_job(replicas=4), index=3)
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("3", "4", "0")
    assert (env["PET_NNODES"], env["PET_NODE_RANK"], env["PET_NPROC_PER_NODE"]) == ("4", "3", "1")
    several = env_of(make_job(replicas=4, workers={"procsPerWorker": 2}), index=3)
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & several.keys()
    assert (several["PET_NNODES"], several["PET_NPROC_PER_NODE"]) == ("4", "2")


def test_the_parameter_server_is_the_last_rank_with_resources_of_its_own() -> None:
    server = {"resources": {"limits": {"memory": "4Gi"}}, "template": {"spec": {"nodeSelector": {"pool": "cpu"}}}}
    job = make_job(**served(), parameterServer=server, workers={"procsPerWorker": 3})
    pod, env = pod_of(job, index=2), env_of(job, index=2)
    assert pod["metadata"]["name"] == pod["spec"]["hostname"] == "job-2-server"
    assert pod["metadata"]["labels"][constants.LABEL_ROLE] == "server"
    assert worker_of(pod)["resources"] == {"limits": {"memory": "4Gi"}}
    assert pod["spec"]["nodeSelector"] == {"pool": "cpu"}
    assert (env["RANK"], env["WORLD_SIZE"], env["PET_NPROC_PER_NODE"], env["PET_NNODES"]) == ("6", "7", "1", "3")
    worker, env = pod_of(job, index=1), env_of(job, index=1)
    assert worker["metadata"]["labels"][constants.LABEL_ROLE] == "worker"
    assert worker_of(worker)["resources"] == {}
    assert (env["WORLD_SIZE"], env["PET_NPROC_PER_NODE"], env["PET_NODE_RANK"]) == ("7", "3", "1")
    assert "RANK" not in env, "three ranks: the launcher counts them"


def test_a_users_variable_cannot_replace_one_of_the_rendezvous() -> None:
    job = make_job(env=[{"name": "MASTER_ADDR", "value": "mine"}, {"name": "OTHER", "value": "kept"}])
    values = [e["value"] for e in worker_of(pod_of(job))["env"] if e["name"] == "MASTER_ADDR"]
    assert values[-1] == "job-2-0.job.default.svc", "the last one counts"
    assert env_of(job)["OTHER"] == "kept"


def test_the_trainers_image_is_the_installations_unless_the_job_names_one() -> None:
    assert worker_of(pod_of(make_job(trainer=trainer_spec())))["image"] == "example.com/trainer:1"
    assert worker_of(pod_of(make_job(trainer=trainer_spec(), image="mine")))["image"] == "mine"


def test_the_trainer_fits_the_restricted_security_profile() -> None:
    """Kubernetes documentation, Pod Security Standards: what `restricted` asks for."""
    pod = pod_of(make_job(trainer=trainer_spec()))
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = worker_of(pod)["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["automountServiceAccountToken"] is False


# --- lost nodes -----------------------------------------------------------------------------------------------

LOST = [
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for key in ("not-ready", "unreachable")
]


def tolerations_of(*given: dict[str, Any]) -> list[dict[str, Any]]:
    pod = pod_of(make_job(workers={"template": {"spec": {"tolerations": list(given)}}}))
    found: list[dict[str, Any]] = pod["spec"]["tolerations"]
    return found


def test_a_pod_leaves_a_lost_node_after_half_a_minute(job: TrainingJob) -> None:
    assert pod_of(job)["spec"]["tolerations"][-2:] == LOST
    server = build_pod(make_job(**served()), 1, 2, trainer_image="t")
    assert server["spec"]["tolerations"] == LOST


def test_a_template_may_have_its_own_toleration_of_a_lost_node() -> None:
    patient = {**LOST[0], "tolerationSeconds": 600}
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists"}
    assert tolerations_of(gpu, patient) == [gpu, patient, LOST[1]]
    everything = {"operator": "Exists"}
    assert tolerations_of(everything) == [everything]
    other_effect = {**LOST[0], "effect": "NoSchedule"}
    assert tolerations_of(other_effect) == [other_effect, *LOST]


@pytest.mark.parametrize("given", ["all", ["all"]])
def test_invalid_tolerations_are_left_to_the_api_server(given: Any) -> None:
    pod = pod_of(make_job(workers={"template": {"spec": {"tolerations": given}}}))
    assert pod["spec"]["tolerations"] == given
