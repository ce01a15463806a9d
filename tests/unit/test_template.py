"""Templates of users: how they are merged with the operator's own pod spec, and what is refused by which words."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import make_job, served, trainer_spec
from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.children import build_service
from trainyard_operator.manifests.merge import merge_pod_spec
from trainyard_operator.manifests.pod import build_pod
from trainyard_operator.manifests.template import TemplateError, read_template

FIELD = "spec.workers.template.spec"
WORKER = f"{FIELD}.containers[worker]"


def pod_of(job: TrainingJob, index: int = 1) -> dict[str, Any]:
    return build_pod(job, 2, index, trainer_image="example.com/trainer:1")


def with_template(template: dict[str, Any], *, trainer: bool = True, **spec: Any) -> dict[str, Any]:
    """The spec of a pod of a job with a template."""
    workers = {**spec.pop("workers", {}), "template": {"spec": template}}
    return cast("dict[str, Any]", pod_of(job_with(workers, trainer=trainer, **spec))["spec"])


def job_with(workers: dict[str, Any], *, trainer: bool, **spec: Any) -> TrainingJob:
    if trainer:
        return make_job(trainer=trainer_spec(), workers=workers, **spec)
    return make_job(workers=workers, **spec)


def worker_with(container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """The worker container of a job with a template for it."""
    worker: dict[str, Any] = with_template({"containers": [{"name": "worker", **container}]}, **spec)["containers"][0]
    return worker


def test_what_the_operator_sets_stands_and_the_rest_is_the_templates() -> None:
    spec = with_template({"restartPolicy": "Always", "nodeName": "n", "subdomain": "mine"})
    assert (spec["restartPolicy"], spec["nodeName"], spec["subdomain"]) == ("Never", "n", "job")


def test_the_worker_comes_first_and_other_containers_stay_as_they_are() -> None:
    sidecar = {"name": "side", "image": "s", "env": [{"name": "A", "value": "1"}], "volumeMounts": None}
    worker, other = with_template({"containers": [sidecar]})["containers"]
    assert (worker["name"], other) == ("worker", sidecar)


def test_the_workers_container_is_merged_field_by_field() -> None:
    theirs = {
        "image": "theirs",
        "command": ["theirs", "long"],
        "tty": True,
        "stdin": None,
        "env": [{"name": "A", "value": "x"}, {"name": "B"}],
        "resources": {"limits": {"rdma/nic": 1, "memory": "1Gi"}, "claims": [{"name": "gpu"}]},
    }
    worker = worker_with(
        theirs, env=[{"name": "A", "value": "own"}], workers={"resources": {"limits": {"memory": "2Gi"}}}
    )
    assert (worker["image"], worker["command"], worker["tty"]) == (
        "example.com/trainer:1",
        ["python", "-P", "-m", "trainyard_trainer"],
        True,
    )
    assert worker["env"][-2:] == [{"name": "B"}, {"name": "A", "value": "own"}]
    assert worker["resources"] == {
        "limits": {"rdma/nic": 1, "memory": "2Gi"},
        "claims": [{"name": "gpu"}],
    }


def test_null_is_absent_as_in_the_api() -> None:
    nulls = dict.fromkeys(
        ("containers", "volumes", "tolerations", "securityContext", "imagePullSecrets", "terminationGracePeriodSeconds")
    )
    checkpoint = {"claim": {"size": "1Gi"}}
    assert with_template(nulls, checkpoint=checkpoint) == with_template({}, checkpoint=checkpoint)
    fields = ("env", "volumeMounts", "ports", "resources", "securityContext", "readinessProbe")
    assert worker_with(dict.fromkeys(fields)) == worker_with({})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"containers": {"name": "side"}}, f"{FIELD}.containers: must be a list of objects; correct it"),
        ({"containers": ["side"]}, f"{FIELD}.containers: must be a list of objects; correct it"),
        ({"containers": [None]}, f"{FIELD}.containers: must be a list of objects; correct it"),
        ({"containers": [{"image": "y"}]}, f"{FIELD}.containers[0].name: is required and must be a text; add it"),
        ({"containers": [{"name": 7}]}, f"{FIELD}.containers[0].name: is required and must be a text; add it"),
        ({"containers": [{"name": "a"}, {"name": "a"}]}, f"{FIELD}.containers: two have the name a; rename one"),
        ({"imagePullSecrets": ["s"]}, f"{FIELD}.imagePullSecrets: must be a list of objects; correct it"),
        ({"volumes": [{"emptyDir": {}}]}, f"{FIELD}.volumes[0].name: is required and must be a text; add it"),
        ({"securityContext": "root"}, f"{FIELD}.securityContext: must be an object; correct it"),
        ({"securityContext": {"seccompProfile": "x"}}, f"{FIELD}.securityContext.seccompProfile: must be an object"),
        (
            {"terminationGracePeriodSeconds": "2m"},
            f"{FIELD}.terminationGracePeriodSeconds: must be a number of seconds",
        ),
        (
            {"terminationGracePeriodSeconds": True},
            f"{FIELD}.terminationGracePeriodSeconds: must be a number of seconds",
        ),
        ({"terminationGracePeriodSeconds": -1}, f"{FIELD}.terminationGracePeriodSeconds: must be a number of seconds"),
    ],
)
def test_a_malformed_template_is_named_with_the_rule_and_the_fix(template: dict[str, Any], message: str) -> None:
    with pytest.raises(TemplateError) as error:
        with_template(template, checkpoint={"claim": {"size": "1Gi"}})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"env": [None]}, f"{WORKER}.env: must be a list of objects; correct it"),
        ({"env": [{"value": "x"}]}, f"{WORKER}.env[0].name: is required and must be a text; add it"),
        ({"volumeMounts": [{"name": "a"}]}, f"{WORKER}.volumeMounts[0].mountPath: is required and must be a text"),
        ({"ports": 80}, f"{WORKER}.ports: must be a list of objects; correct it"),
        ({"resources": ["cpu"]}, f"{WORKER}.resources: must be an object; correct it"),
        ({"resources": {"limits": 1}}, f"{WORKER}.resources.limits: must be an object; correct it"),
        ({"securityContext": {"capabilities": []}}, f"{WORKER}.securityContext.capabilities: must be an object"),
    ],
)
def test_a_malformed_worker_container_is_named(container: dict[str, Any], message: str) -> None:
    with pytest.raises(TemplateError) as error:
        worker_with(container)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "affinity",
    [
        "here",
        {"nodeAffinity": "here"},
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [None]}}},
        {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": "x"}]}
            }
        },
    ],
)
def test_a_malformed_affinity_is_named_once_the_job_avoids_a_node(affinity: Any) -> None:
    job = make_job(
        workers={"template": {"spec": {"affinity": affinity}}}, status={"slowNodes": ["node-1"], "attempt": 2}
    )
    with pytest.raises(TemplateError, match=r"^spec\.workers\.template\.spec\.affinity"):
        pod_of(job)


def test_an_affinity_of_nulls_is_none() -> None:
    job = make_job(
        workers={"template": {"spec": {"affinity": {"nodeAffinity": None}}}},
        status={"slowNodes": ["node-1"], "attempt": 2},
    )
    assert "nodeAffinity" in pod_of(job)["spec"]["affinity"]


def test_an_error_in_the_template_of_the_parameter_server_names_it() -> None:
    job = make_job(**served(), parameterServer={"template": {"spec": {"volumes": "x"}}})
    with pytest.raises(TemplateError, match=r"^spec\.parameterServer\.template\.spec\.volumes"):
        pod_of(job, index=2)


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
container_fields = st.sampled_from(
    ["name", "env", "volumeMounts", "ports", "resources", "securityContext", "readinessProbe", "image", "args"]
)
hostile_containers = st.lists(
    st.dictionaries(container_fields, anything, max_size=6).flatmap(
        lambda c: st.sampled_from([c, {**c, "name": "worker"}, {**c, "name": "side"}])
    )
    | anything,
    max_size=3,
)
pod_fields = st.sampled_from(
    [
        "volumes",
        "imagePullSecrets",
        "securityContext",
        "tolerations",
        "affinity",
        "terminationGracePeriodSeconds",
        "hostNetwork",
        "dnsPolicy",
        "initContainers",
    ]
)


@given(spec=st.dictionaries(pod_fields, anything, max_size=5), containers=hostile_containers | anything)
def test_no_template_whatever_it_holds_raises_another_error_or_loses_a_container(
    spec: dict[str, Any], containers: Any
) -> None:
    template = {**spec, "containers": containers}
    before = repr(template)
    workers = {"template": {"spec": template}}
    job = make_job(
        trainer=trainer_spec(), workers=workers, checkpoint={"claim": {"size": "1Gi"}}, status={"slowNodes": ["n"]}
    )
    problem, pod = "", None
    try:
        pod = build_pod(job, 1, 0, trainer_image="t", secret="s")
    except TemplateError as error:
        problem = str(error)
    if pod is None:
        assert problem.startswith(FIELD)
        assert "; " in problem, "the fix"
    else:
        names = {c["name"] for c in pod["spec"]["containers"]}
        assert names == {"worker"} | {c["name"] for c in containers or ()}
        volumes = [v["name"] for v in pod["spec"]["volumes"]]
        assert {v["name"] for v in template.get("volumes") or ()} <= set(volumes)
        assert len(volumes) == len(set(volumes))
    assert repr(template) == before, "the cached job is not changed"


# --- volumes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tmp", "config", "shm", "checkpoints"])
def test_a_volume_of_a_user_may_have_any_common_name(name: str) -> None:
    theirs = {"name": name, "persistentVolumeClaim": {"claimName": "scratch"}}
    mount = {"name": name, "mountPath": "/scratch"}
    template = {"volumes": [theirs], "containers": [{"name": "worker", "volumeMounts": [mount]}]}
    spec = with_template(template, checkpoint={"claim": {"size": "1Gi"}})
    assert theirs in spec["volumes"]
    assert mount in spec["containers"][0]["volumeMounts"]
    names = [volume["name"] for volume in spec["volumes"]]
    own = ["trainyard-shm", "trainyard-checkpoints", "trainyard-config", "trainyard-tmp"]
    assert names == [name, *own]


def test_names_of_the_operators_volumes_are_reserved() -> None:
    with pytest.raises(TemplateError) as error:
        with_template({"volumes": [{"name": "trainyard-tmp", "emptyDir": {}}]})
    assert str(error.value) == (
        f"{FIELD}.volumes: trainyard-tmp: names that start with trainyard- are reserved for the operator; rename it"
    )


def test_a_name_in_the_source_of_the_checkpoints_renames_no_volume() -> None:
    checkpoint = {"volume": {"emptyDir": {}, "name": "mine"}}
    assert {"name": "trainyard-checkpoints", "emptyDir": {}} in with_template({}, checkpoint=checkpoint)["volumes"]


@pytest.mark.parametrize(
    ("path", "own"), [("/tmp", "trainyard-tmp"), ("/tmp/", "trainyard-tmp"), ("//dev/./shm/", "trainyard-shm")]
)
def test_a_volume_of_a_user_at_tmp_or_shared_memory_replaces_the_operators(path: str, own: str) -> None:
    mount = {"name": "large", "mountPath": path}
    template = {
        "volumes": [{"name": "large", "emptyDir": {"sizeLimit": "1Ti"}}],
        "containers": [{"name": "worker", "volumeMounts": [mount]}],
    }
    spec = with_template(template)
    mounts = spec["containers"][0]["volumeMounts"]
    assert mount in mounts
    assert own not in {volume["name"] for volume in spec["volumes"]}
    assert {m["name"] for m in mounts} <= {v["name"] for v in spec["volumes"]}


@pytest.mark.parametrize("path", ["/checkpoints", "/checkpoints/", "/etc/trainyard"])
def test_a_mount_where_the_operator_needs_its_own_is_refused(path: str) -> None:
    with pytest.raises(TemplateError, match=r"is the mount path of the volume trainyard-.* choose another mountPath"):
        worker_with({"volumeMounts": [{"name": "x", "mountPath": path}]}, checkpoint={"claim": {"size": "1Gi"}})
    worker_with({"volumeMounts": [{"name": "x", "mountPath": path}]}, trainer=False)


@pytest.mark.parametrize(
    ("workers", "size"),
    [
        ({"sharedMemory": "3Gi", "resources": {"limits": {"memory": "8Gi"}}}, "3Gi"),
        ({}, "64Gi"),
        ({"procsPerWorker": 4}, "256Gi"),
        ({"procsPerWorker": 4, "resources": {"limits": {"memory": "8Gi"}}}, "8Gi"),
        ({"resources": {"requests": {"memory": "8Gi"}}}, "64Gi"),
    ],
)
def test_shared_memory_cannot_use_up_a_node(workers: dict[str, Any], size: str) -> None:
    volumes = with_template({}, workers=workers)["volumes"]
    assert {"name": "trainyard-shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}} in volumes


def test_the_size_of_shared_memory_is_that_of_the_workers_and_not_of_the_server() -> None:
    server = {"resources": {"limits": {"memory": "4Gi"}}}
    job = make_job(**served(), parameterServer=server, workers={"sharedMemory": "3Gi"})
    sizes = [pod_of(job, index)["spec"]["volumes"][0]["emptyDir"]["sizeLimit"] for index in (1, 2)]
    assert sizes == ["3Gi", "4Gi"]


def test_a_volume_of_the_template_and_a_size_of_shared_memory_exclude_each_other() -> None:
    mount = {"volumeMounts": [{"name": "large", "mountPath": "/dev/shm/"}]}
    with pytest.raises(TemplateError) as error:
        worker_with(mount, workers={"sharedMemory": "3Gi"})
    assert str(error.value) == (
        f"{WORKER}.volumeMounts: the volume at /dev/shm replaces that of spec.workers.sharedMemory; remove one of them"
    )


def test_shared_memory_holds_the_copies_of_large_models_for_checkpoints() -> None:
    trainer = trainer_spec(model={"name": "llama", "preset": "70b"}, batch={"global": 16})

    def size(replicas: int, **spec: Any) -> str:
        workers = {"procsPerWorker": 8}
        job = make_job(
            replicas=replicas, workers=workers, parallelism={"data": {"mode": "fsdp"}}, trainer=trainer, **spec
        )
        return str(pod_of(job, 0)["spec"]["volumes"][0]["emptyDir"]["sizeLimit"])

    checkpoint = {"claim": {"size": "2Ti"}}
    assert size(1) == "512Gi"
    # 68.5 B parameters in 12 bytes each, of which two workers hold a half each.
    assert size(2, checkpoint=checkpoint) == "512Gi"
    assert size(1, checkpoint=checkpoint) == "770Gi"
    assert size(1, checkpoint={**checkpoint, "async": False}) == "512Gi"


# --- ports, probes, resources ---------------------------------------------------------------------------------


def test_ports_of_a_template_are_kept() -> None:
    debug = {"name": "debug", "containerPort": 5678}
    unnamed = {"containerPort": 6006}
    assert worker_with({"ports": [debug, unnamed]})["ports"] == [
        debug,
        unnamed,
        {"name": "metrics", "containerPort": 9400},
    ]
    same = {"name": "metrics", "containerPort": 9400}
    assert worker_with({"ports": [same]})["ports"] == [same]
    assert worker_with({"ports": [same]}, trainer=False)["ports"] == [same], "a program without spec.metrics"


@pytest.mark.parametrize("port", [{"name": "metrics", "containerPort": 8000}, {"name": "launcher", "containerPort": 1}])
def test_a_port_that_the_operator_would_take_for_its_own_is_refused(port: dict[str, Any]) -> None:
    with pytest.raises(TemplateError, match=f"the name {port['name']} is reserved for a port of the operator"):
        worker_with({"ports": [port]})


def test_a_readiness_probe_has_one_handler() -> None:
    template = {"containers": [{"name": "worker", "readinessProbe": {"exec": {}, "initialDelaySeconds": 600}}]}
    job = make_job(trainer=trainer_spec(), workers={"template": {"spec": template}})
    own = build_pod(job, 1, 0, trainer_image="t", secret="s")["spec"]["containers"][0]["readinessProbe"]
    assert own == {"httpGet": {"path": "/readyz", "port": "launcher"}, "periodSeconds": 1, "failureThreshold": 1}
    theirs = worker_with({"readinessProbe": {"exec": {}}}, trainer=False)["readinessProbe"]
    assert theirs == {"exec": {}}


def test_gpus_of_a_template_that_would_not_set_the_number_of_ranks_are_refused() -> None:
    gpus = {"resources": {"limits": {"nvidia.com/gpu": 8}}}
    with pytest.raises(TemplateError) as error:
        worker_with(gpus)
    assert str(error.value) == (
        f"{WORKER}.resources: nvidia.com/gpu does not set the number of ranks here; move it to "
        "spec.workers.resources.limits, or set spec.workers.procsPerWorker"
    )
    assert worker_with(gpus, workers={"procsPerWorker": 8})["resources"] == gpus["resources"]


@pytest.mark.parametrize("device", ["amd.com/gpu", "nvidia.com/mig-1g.5gb", "example.com/npu"])
def test_a_device_of_a_template_is_never_taken_for_a_cpu(device: str) -> None:
    template = {"resources": {"limits": {device: 2}}}
    with pytest.raises(TemplateError, match=f"{device} does not set the number of ranks here; "):
        worker_with(template, trainer=False)
    counted = worker_with(template, trainer=False, workers={"resources": {"limits": {"nvidia.com/gpu": 1}}})
    assert counted["resources"]["limits"] == {device: 2, "nvidia.com/gpu": 1}


@pytest.mark.parametrize("trainer", [True, False])
def test_devices_for_rdma_reach_the_pod_as_they_are(trainer: bool) -> None:
    nics = {"rdma/hca_shared_devices_a": 1, "vpc.amazonaws.com/efa": "4", "networking.gke.io.networks/rdma-0": 1}
    limits = {**nics, "hugepages-2Mi": "1Gi", "memory": "8Gi"}
    lock = {"securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}
    workers = {"resources": {"limits": limits, "requests": nics}}
    worker = worker_with({**lock, "resources": {"limits": {"rdma/other": 1}}}, trainer=trainer, workers=workers)
    assert worker["resources"] == {"limits": {"rdma/other": 1, **limits}, "requests": nics}
    assert worker["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert {"name": "PET_NPROC_PER_NODE", "value": "1"} in worker["env"]


def test_the_service_has_the_port_of_the_metrics() -> None:
    def ports(**spec: Any) -> dict[str, int]:
        return {port["name"]: port["port"] for port in build_service(make_job(**spec))["spec"]["ports"]}

    assert ports(trainer=trainer_spec()) == {"rendezvous": 29500, "metrics": 9400}
    assert ports(metrics={"port": 8000}) == {"rendezvous": 29500, "metrics": 8000}
    assert ports() == {"rendezvous": 29500}


# --- defaults that a template may change ----------------------------------------------------------------------


def test_a_security_context_of_a_template_keeps_what_it_does_not_mention() -> None:
    spec = with_template(
        {
            "securityContext": {"fsGroup": 2000, "supplementalGroups": [7]},
            "containers": [{"name": "worker", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}],
        }
    )
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 2000,
        "supplementalGroups": [7],
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    }


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [("automountServiceAccountToken", False, True), ("enableServiceLinks", False, True)],
)
def test_a_template_overrides_the_operators_defaults(name: str, ours: Any, theirs: Any) -> None:
    assert with_template({name: theirs})[name] == theirs
    assert with_template({})[name] == ours


def test_pods_in_the_network_of_their_node_find_their_master() -> None:
    assert with_template({"hostNetwork": True})["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert with_template({"hostNetwork": True, "dnsPolicy": "None"})["dnsPolicy"] == "None"
    assert "dnsPolicy" not in with_template({})
    job = job_with({"template": {"spec": {"hostNetwork": True}}}, trainer=True)
    for index in (0, 1):
        env = {e["name"]: e.get("value") for e in pod_of(job, index)["spec"]["containers"][0]["env"]}
        assert env["MASTER_ADDR"] == "job-2-0.job.default.svc", "in the Service"


@pytest.mark.parametrize("trainer", [True, False])
def test_ports_in_the_network_of_a_node_are_named_so_that_no_two_pods_collide(trainer: bool) -> None:
    """The API server makes host ports of them, and the scheduler gives no two pods the same one on a node."""

    def ports(index: int, template: dict[str, Any], **workers: Any) -> set[int]:
        job = job_with({"template": {"spec": template}, **workers}, trainer=trainer)
        pod = build_pod(job, 1, index, trainer_image="t", secret="s")
        return {port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}

    metrics = {9400} if trainer else set()
    assert ports(0, {"hostNetwork": True}) == {29500, 9401} | metrics
    assert ports(1, {"hostNetwork": True}) == {9401} | metrics
    assert ports(0, {}) == {9401} | metrics


def test_a_variable_may_refer_to_those_of_the_operator_and_of_the_template() -> None:
    """Kubernetes expands $(NAME) in a value only if NAME is defined before it."""
    env = [{"name": "RUN", "value": "$(TRAINYARD_JOB_NAME)-$(TEAM)"}, {"name": "TRAINYARD_JOB_NAME", "value": "x"}]
    names = [e["name"] for e in worker_with({"env": [{"name": "TEAM", "value": "a"}]}, env=env)["env"]]
    assert names[-2:] == ["TEAM", "RUN"]
    assert names.count("TRAINYARD_JOB_NAME") == 1
    launcher = build_pod(make_job(trainer=trainer_spec(), env=env), 1, 0, trainer_image="t", secret="s")
    assert [e["name"] for e in launcher["spec"]["containers"][0]["env"]][-2:] == ["TRAINYARD_TOKEN", "RUN"]


def test_init_containers_of_the_operator_run_before_those_of_the_template() -> None:
    worker = {"name": "worker", "volumeMounts": [], "resources": {}}
    own = {"containers": [worker], "volumes": [], "initContainers": [{"name": "folder"}]}
    theirs = read_template({"initContainers": [{"name": "fetch"}]}, FIELD)
    assert merge_pod_spec(theirs, own)["initContainers"] == [{"name": "folder"}, {"name": "fetch"}]
    assert with_template({"initContainers": [{"name": "fetch"}]})["initContainers"] == [{"name": "fetch"}]


def test_secrets_for_images_are_those_of_the_template_and_of_the_spec() -> None:
    spec = with_template({"imagePullSecrets": [{"name": "a"}, {"name": "b"}]}, imagePullSecrets=[{"name": "b"}])
    assert spec["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert with_template({"imagePullSecrets": [{"name": "a"}]})["imagePullSecrets"] == [{"name": "a"}]
