"""What a program finds in its pod: the rendezvous, its devices, shared memory, the network, and the user's template."""

import re
from collections.abc import Callable
from typing import Any

from tests.conformance import then, when
from tests.conformance.backends import worker
from tests.conformance.cases_life import TRAINER
from tests.conformance.model import Case, Job, Object, Step, case
from tests.conformance.trial import Trial

LAUNCH = "PET_NPROC_PER_NODE"
SHM = "spec.volumes"


def variables_of_the_mapping(index: int) -> Step:
    """A worker has the variables that the operator under test promises."""
    return lambda trial: then.environment(index, dict(trial.mapping.environment(index, 2)))(trial)


def address_of_worker_0(index: int) -> Step:
    """A worker has the DNS name of worker 0, with the domain of the cluster where the operator knows it."""

    async def step(trial: Trial) -> None:
        address = re.compile(rf"job-1-0\.job\.{trial.namespace}\.svc(\.[a-z.]+)?").fullmatch
        await then.environment(index, {"MASTER_ADDR": address, "PET_MASTER_ADDR": address})(trial)

    return step


def container(index: int, check: Callable[[Object], bool]) -> Step:
    """The container of a worker's program is as `check` says."""

    def probe(trial: Trial) -> None:
        for pod in trial.newest(index):
            assert check(worker(pod)), worker(pod)

    return then.expect(probe)


def shared_memory(size: str) -> Step:
    """The volume at /dev/shm of worker 0 is memory of this size."""

    def probe(trial: Trial) -> None:
        [pod] = trial.newest(0)
        [name] = [mount["name"] for mount in worker(pod)["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == name]
        assert volume.get("emptyDir") == {"medium": "Memory", "sizeLimit": size}, volume

    return then.expect(probe)


def job(limits: Object | None = None, template: Object | None = None, **workers: Any) -> Job:
    """Return a job with limits of its workers, a template, and other fields of workers."""
    fields = {**workers, **({"template": {"spec": template}} if template else {})}
    return Job(spec={"workers": {**fields, **({"resources": {"limits": limits}} if limits else {})}})


def devices(name: str, processes: int, given: Job) -> Case:
    """Return the case that a worker has this many processes."""
    single: Object = {"RANK": "1", "WORLD_SIZE": "2"} if processes == 1 else {"RANK": None, "WORLD_SIZE": None}
    return case(
        f"given {name}, then there {'is 1 process' if processes == 1 else f'are {processes} processes'} per worker",
        given,
        then.environment(1, {LAUNCH: str(processes), "PET_NNODES": "2", **single}),
    )


CLAIM = {
    "resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "gpus"}],
    "containers": [{"name": "worker", "resources": {"claims": [{"name": "gpus"}]}}],
}
OWN_VOLUME = {
    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "3Gi"}}],
    "containers": [{"name": "worker", "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}],
}
TOLERATION = {"key": "gpu", "operator": "Exists"}
TEMPLATE = {
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [TOLERATION],
    "containers": [
        {"name": "logs", "image": "example.com/logs"},
        {"name": "worker", "env": [{"name": "TEAM", "value": "a"}], "securityContext": {"runAsUser": 1000}},
    ],
}

CASES = (
    # --- the rendezvous --------------------------------------------------------------------------------------
    case(
        "given one process per worker, then each has its rank, the world size and the port of the rendezvous",
        Job(),
        then.runs(),
        variables_of_the_mapping(0),
        variables_of_the_mapping(1),
        needs="rendezvous",
        node=True,
    ),
    case(
        "given a group, then all workers have the same DNS name of worker 0 in the headless service",
        Job(),
        then.runs(),
        address_of_worker_0(0),
        address_of_worker_0(1),
        then.pod(0, {"spec.hostname": "job-1-0", "spec.subdomain": "job"}),
        node=True,
    ),
    case(
        "given a job that restarts, then the programs of attempt 2 have its number and its address",
        Job(restarts=1),
        then.runs(),
        then.environment(0, {"TRAINYARD_ATTEMPT": "1"}),
        when.ends(0, code=1),
        then.runs(2),
        then.environment(0, {"TRAINYARD_ATTEMPT": "2", "MASTER_ADDR": then.has("job-2-0.job.")}),
        then.environment(1, {"TRAINYARD_ATTEMPT": "2", "MASTER_ADDR": then.has("job-2-0.job.")}),
        node=True,
    ),
    case(
        "given two processes per worker, then torchrun has its variables and no rank is set for it",
        Job(spec={"workers": {"procsPerWorker": 2}}),
        then.runs(),
        then.environment(1, {LAUNCH: "2", "PET_NNODES": "2", "PET_NODE_RANK": "1", "RANK": None, "WORLD_SIZE": None}),
    ),
    case(
        "given spec.env with a variable of the rendezvous, then that of the operator stays, and others are added",
        Job(spec={"env": [{"name": "MASTER_PORT", "value": "1"}, {"name": "TEAM", "value": "a"}]}),
        then.runs(),
        then.environment(0, {"MASTER_PORT": "29500", "TEAM": "a"}),
    ),
    case(
        "given a job with a checkpoint volume, then the program has an absolute folder of the job",
        Job(spec={"checkpoint": {"volume": {"emptyDir": {}}}}),
        then.runs(),
        then.environment(0, {"TRAINYARD_CHECKPOINTS": then.has("/job"), "TRAINYARD_JOB_NAME": "job"}),
        node=True,
    ),
    # --- devices ---------------------------------------------------------------------------------------------
    devices("no devices", 1, job()),
    devices("8 GPUs of NVIDIA", 8, job({"nvidia.com/gpu": 8})),
    devices("4 GPUs of AMD", 4, job({"amd.com/gpu": "4"})),
    devices("2 MIG devices", 2, job({"nvidia.com/mig-1g.5gb": 2})),
    devices("8 Gaudi devices", 8, job({"habana.ai/gaudi": 8})),
    devices("1 GPU", 1, job({"nvidia.com/gpu": 1})),
    devices("network devices only", 1, job({"rdma/hca": 4, "vpc.amazonaws.com/efa": 1})),
    devices("another device and a number of processes", 4, job({"example.com/npu": 4}, procsPerWorker=4)),
    devices("a resource claim and a number of processes", 2, job(template=CLAIM, procsPerWorker=2)),
    case(
        "given an RDMA device beside GPUs, then both reach the pod",
        job({"nvidia.com/gpu": 8, "rdma/hca": 1}),
        container(0, lambda c: c["resources"]["limits"] == {"nvidia.com/gpu": "8", "rdma/hca": "1"}),
    ),
    case(
        "given a device that is not known, then the number of processes is asked for",
        None,
        then.refuses(job({"example.com/npu": 4}), "spec.workers.procsPerWorker: auto does not know", "set it to"),
    ),
    case(
        "given two kinds of devices, then the number of processes is asked for",
        None,
        then.refuses(
            job({"nvidia.com/gpu": 1, "amd.com/gpu": 1}), "spec.workers.procsPerWorker: auto is the number of devices"
        ),
    ),
    case(
        "given a resource claim without a number of processes, then the job fails before any pod and says what to set",
        job(template=CLAIM),
        then.says("Failed", "True", "InvalidSpec", "procsPerWorker"),
        then.stays(then.pods_are(), 0.3),
    ),
    case(
        "given a device of another vendor, then the built-in trainer is refused",
        None,
        then.refuses(
            Job(program=False, spec={**TRAINER, "workers": {"resources": {"limits": {"habana.ai/gaudi": 1}}}}),
            "spec.trainer: computes on GPUs of NVIDIA and AMD and on CPUs",
        ),
    ),
    # --- shared memory and network ---------------------------------------------------------------------------
    case("given no memory limit, then /dev/shm has 64Gi per rank", Job(), shared_memory("64Gi")),
    case("given a memory limit, then /dev/shm is as large", job({"memory": "8Gi"}), shared_memory("8Gi")),
    case(
        "given sharedMemory, then /dev/shm has that size",
        job({"memory": "8Gi"}, sharedMemory="2Gi"),
        shared_memory("2Gi"),
    ),
    case(
        "given a volume of the template at /dev/shm, then it replaces that of the operator",
        job(template=OWN_VOLUME),
        shared_memory("3Gi"),
    ),
    case(
        "given both sharedMemory and a volume of the template at /dev/shm, then the job fails and names both",
        job(template=OWN_VOLUME, sharedMemory="2Gi"),
        then.says("Failed", "True", "InvalidSpec", "spec.workers.sharedMemory; remove one of them"),
    ),
    case(
        "given hostNetwork, then the pods find the service, and reserve their ports so that none collide on a node",
        job(template={"hostNetwork": True}),
        then.runs(),
        then.pod(0, {"spec.hostNetwork": True, "spec.dnsPolicy": "ClusterFirstWithHostNet"}),
        container(0, lambda c: 29500 in [port["hostPort"] for port in c["ports"]]),
        address_of_worker_0(0),
        address_of_worker_0(1),
    ),
    case(
        "given hostNetwork and a metrics page, then each worker reserves its port",
        Job(spec={"metrics": {"port": 9500}, "workers": {"template": {"spec": {"hostNetwork": True}}}}),
        container(0, lambda c: {port["hostPort"] for port in c["ports"]} == {9500, 29500}),
        container(1, lambda c: {port["hostPort"] for port in c["ports"]} == {9500}),
        then.environment(1, {"TRAINYARD_METRICS_PORT": "9500"}),
    ),
    # --- the template ----------------------------------------------------------------------------------------
    case(
        "given a template, then the pods have its fields, its sidecar, and a worker merged into that of the operator",
        job(template=TEMPLATE),
        then.pod(0, {"spec.nodeSelector": {"pool": "gpu"}}),
        then.pod(0, {"spec.tolerations": lambda found: TOLERATION in found}),
        then.pod(0, {"spec.containers": lambda found: {c["name"] for c in found} == {"worker", "logs"}}),
        container(1, lambda c: c["securityContext"] == {"runAsUser": 1000}),
        then.environment(1, {"TEAM": "a", "PET_NODE_RANK": "1"}),
    ),
    case(
        "given labels of a template, then the pods have them, and those of the operator cannot be replaced",
        Job(spec={"workers": {"template": {"metadata": {"labels": {"team": "a", "trainyard.dev/index": "7"}}}}}),
        then.pod(1, {"metadata.labels.team": "a", ("metadata", "labels", "trainyard.dev/index"): "1"}),
    ),
)
