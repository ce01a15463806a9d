"""What was accepted is what runs, and objects of another version of the CRD are understood or answered."""

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_manifest, served, trainer_spec
from tests.cluster import Cluster
from tests.integration.conftest import CRD, install_crd
from tests.support.fake_kubelet import end_all, finish_deletion, run_all
from tests.support.kube import Namespace, Object, eventually
from tests.support.operator import OperatorProcess, operating

CLAIM = {"claim": {"size": "1Gi"}}


def template(**spec: Any) -> dict[str, Any]:
    return {"workers": {"template": {"spec": spec}}}


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "a typo": (template(nodeselector={"a": "b"}), 'unknown field "spec.nodeselector"'),
    "a container without a name": (template(containers=[{"image": "y"}]), "name"),
    "secrets as strings": (template(imagePullSecrets=["registry"]) | {"imagePullSecrets": [{"name": "a"}]}, "spec.w"),
    "a container that is null": (template(containers=[None]), "spec.workers.template"),
    "variables that are null": (template(containers=[{"name": "worker", "env": [None]}]), "spec.workers.template"),
    "a grace period as text": (
        template(terminationGracePeriodSeconds="2m") | {"trainer": trainer_spec(), "checkpoint": CLAIM},
        "spec.workers.template",
    ),
    "requests above limits": (
        {"workers": {"resources": {"limits": {"cpu": 1}, "requests": {"cpu": 2}}}},
        "must be less than or equal to cpu limit",
    ),
    "a label that is none": ({"workers": {"template": {"metadata": {"labels": {"a": "b c"}}}}}, "metadata.labels"),
    "two sources of a volume": (
        {"checkpoint": {"volume": {"emptyDir": {}, "hostPath": {"path": "/x"}}}},
        "may not specify more than 1 volume type",
    ),
    "a value and its source": (
        {"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
        "may not be specified when `value` is not empty",
    ),
    "the template of the parameter server": (
        {**served(), "parameterServer": {"template": {"spec": {"tolerations": [{"key": 3}]}}}},
        "spec.parameterServer.template",
    ),
}


@pytest.mark.parametrize(("fields", "words"), MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.usefixtures("operator")
async def test_a_malformed_spec_fails_the_job_with_the_words_of_the_api_server(
    namespace: Namespace, fields: dict[str, Any], words: str
) -> None:
    await namespace.create_job(make_manifest(**fields))
    condition = await namespace.has_condition("Failed", "True", "InvalidSpec")
    assert words in condition["message"], condition["message"]
    assert condition["message"].startswith("spec."), condition["message"]
    assert await namespace.pods() == {}


async def revisions(namespace: Namespace) -> dict[str, Object]:
    path = f"/apis/apps/v1/namespaces/{namespace.name}/controllerrevisions"
    return {item["metadata"]["name"]: item for item in (await namespace.api.get(path))["items"]}


@pytest.mark.usefixtures("operator")
async def test_the_accepted_spec_and_image_are_stored_and_named_by_the_pods(namespace: Namespace) -> None:
    created = await namespace.create_job(make_manifest(trainer=trainer_spec()))
    pods = await namespace.has_pods("job-1-0", "job-1-1")
    status = (await namespace.job())["status"]
    ((name, revision),) = (await revisions(namespace)).items()
    assert status["acceptedRevision"] == name
    assert {pod["metadata"]["labels"]["trainyard.dev/revision"] for pod in pods.values()} == {name.split("-")[1]}
    assert revision["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]
    assert revision["data"]["image"] == "example.com/trainer:test"
    assert revision["data"]["spec"]["trainer"] == created["spec"]["trainer"]
    assert "suspend" not in revision["data"]["spec"]
    # Suspended and resumed without a change, it is the same; with a change it is another one.
    for change, count in (({}, 1), ({"env": [{"name": "A", "value": "1"}]}, 2)):
        await namespace.edit({"suspend": True})
        await namespace.has_condition("Suspended", "True", "Suspended")
        for pod in await namespace.pods():
            await finish_deletion(namespace, pod)
        await namespace.edit({"suspend": False, **change})
        await namespace.has_condition("Suspended", "False", "Resumed")
        assert len(await revisions(namespace)) == count


# --- another version of the CRD ---------------------------------------------------------------------------------


def loose_crd() -> Object:
    """A CRD that admits every spec, as a newer one admits what this operator has never heard of."""
    crd: Object = yaml.safe_load(CRD.read_text("utf-8"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["x-kubernetes-validations"]
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema["properties"] |= {
        "spec": {**anything, "properties": {"workers": {**anything, "properties": {"replicas": {"type": "integer"}}}}},
        "status": anything,
    }
    return crd


@pytest.fixture(scope="module")
def loose_cluster(own_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    file = tmp_path_factory.mktemp("crd") / "crd.yaml"
    file.write_text(yaml.safe_dump(loose_crd()), "utf-8")
    install_crd(own_cluster, file)
    yield own_cluster
    install_crd(own_cluster)


@pytest.fixture
async def other(loose_cluster: Cluster, tmp_path: Path) -> AsyncIterator[OperatorProcess]:
    """An operator in a cluster whose CRD admits everything."""
    async with operating(loose_cluster.environment, tmp_path / "log") as operator:
        yield operator


async def has_env(namespace: Namespace, value: str, *names: str) -> None:
    pods = await namespace.has_pods(*names)
    found = {e.get("value") for pod in pods.values() for e in pod["spec"]["containers"][0]["env"] if e["name"] == "A"}
    assert found == {value}


async def restart_group(namespace: Namespace, *names: str) -> None:
    """Let the first pod fail and all of them go."""
    await run_all(namespace, *names)
    await namespace.has_phase("Running")
    await end_all(namespace, names[0], code=1)

    async def going() -> None:
        pods = await namespace.pods()
        assert all("deletionTimestamp" in pods[name]["metadata"] for name in names[1:] if name in pods)
        assert names[0] not in pods

    await eventually(going)
    for name in names[1:]:
        await finish_deletion(namespace, name)


@pytest.mark.usefixtures("other")
async def test_a_spec_that_is_changed_while_it_runs_has_no_effect_until_it_is_accepted(
    own_namespace: Namespace,
) -> None:
    policy = {"maxRestarts": 5, "backoff": {"initialSeconds": 0}}
    await own_namespace.create_job(make_manifest(env=[{"name": "A", "value": "1"}], restartPolicy=policy))
    await has_env(own_namespace, "1", "job-1-0", "job-1-1")
    await own_namespace.edit({"env": [{"name": "A", "value": "2"}], "image": "example.com/other"})
    condition = await own_namespace.has_condition("SpecChanged", "True", "SpecChanged")
    assert condition["message"].startswith("spec.image, spec.env: differs from what was accepted (job-")
    await restart_group(own_namespace, "job-1-0", "job-1-1")
    await has_env(own_namespace, "1", "job-2-0", "job-2-1")
    await own_namespace.edit({"suspend": True})
    await own_namespace.has_condition("Suspended", "True", "Suspended")
    for name in ("job-2-0", "job-2-1"):
        await finish_deletion(own_namespace, name)
    await own_namespace.edit({"suspend": False})
    await has_env(own_namespace, "2", "job-3-0", "job-3-1")
    await own_namespace.has_condition("SpecChanged", "False", "AsAccepted")


async def test_a_snapshot_that_is_gone_keeps_pods_from_being_created_and_says_so(
    other: OperatorProcess, own_namespace: Namespace
) -> None:
    await own_namespace.create_job(make_manifest(restartPolicy={"backoff": {"initialSeconds": 0}}))
    await own_namespace.has_pods("job-1-0", "job-1-1")
    name = (await own_namespace.job())["status"]["acceptedRevision"]
    path = f"/apis/apps/v1/namespaces/{own_namespace.name}/controllerrevisions"
    await own_namespace.api.delete(f"{path}/{name}")
    await own_namespace.edit({"image": "example.com/other"})
    await own_namespace.has_condition("SpecChanged", "True", "RevisionMissing")
    await restart_group(own_namespace, "job-1-0", "job-1-1")
    condition = await own_namespace.has_condition("Running", "False", "RevisionMissing")
    assert f"ControllerRevision {name}, which holds the accepted spec, does not exist any more" in condition["message"]
    assert await own_namespace.pods() == {}
    # Undoing the change is enough: what was accepted is known by its hash.
    await own_namespace.edit({"image": make_manifest()["spec"]["image"]})
    await own_namespace.has_pods("job-2-0", "job-2-1")
    assert other.process.poll() is None


async def test_fields_of_a_newer_version_are_named_and_the_status_of_a_newer_operator_stays(
    other: OperatorProcess, own_namespace: Namespace
) -> None:
    await own_namespace.create_job(make_manifest(colour="red", trainer=trainer_spec(mood="good")))
    await own_namespace.has_pods("job-1-0", "job-1-1")
    condition = await own_namespace.has_condition("UnknownFields", "True", "UnknownFields")
    assert condition["message"].startswith("spec.colour, spec.trainer.mood: ")
    newer = {"status": {"phase": "Dreaming", "newField": {"a": 1}, "workers": {"dreaming": 2}}}
    await own_namespace.api.patch(own_namespace.jobs("job", "status"), newer)
    await run_all(own_namespace, "job-1-0", "job-1-1")
    status = await own_namespace.has_phase("Running")
    assert (status["newField"], status["workers"]["dreaming"]) == ({"a": 1}, 2)
    await own_namespace.edit({"colour": None, "trainer": {"mood": None}})
    await own_namespace.has_condition("UnknownFields", "False", "AllFieldsKnown")
    assert other.process.poll() is None


async def test_a_job_that_cannot_be_read_keeps_its_pods_and_is_looked_at_again(
    other: OperatorProcess, own_namespace: Namespace
) -> None:
    await own_namespace.create_job(make_manifest())
    await own_namespace.has_pods("job-1-0", "job-1-1")
    await run_all(own_namespace, "job-1-0", "job-1-1")
    await own_namespace.has_phase("Running")
    await own_namespace.edit({"restartPolicy": {"maxRestarts": "many"}, "imagePullPolicy": "Sometimes"})
    condition = await own_namespace.has_condition("Unreadable", "True", "Unreadable")
    assert "spec.restartPolicy.maxRestarts: must be a whole number, not 'many'" in condition["message"]
    assert "spec.imagePullPolicy: must be 'Always'" in condition["message"]
    await end_all(own_namespace, "job-1-0")
    assert set(await own_namespace.pods()) == {"job-1-0", "job-1-1"}
    await own_namespace.create_job(make_manifest("never-readable", workers={"procsPerWorker": []}))
    await own_namespace.create_job(make_manifest("later"))
    await own_namespace.has_phase("Pending", "never-readable")
    await own_namespace.has_pods("job-1-0", "job-1-1", "later-1-0", "later-1-1")
    await own_namespace.edit({"restartPolicy": {"maxRestarts": 1}, "imagePullPolicy": None})
    await own_namespace.has_condition("Unreadable", "False", "Readable")
    await end_all(own_namespace, "job-1-1")
    await own_namespace.has_phase("Succeeded")
    assert other.process.poll() is None


@pytest.fixture
def deep_json() -> Iterator[None]:
    """This process reads the objects, too."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(12_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("depth", [200, 9_000])
@pytest.mark.usefixtures("deep_json")
async def test_a_deeply_nested_spec_hurts_its_own_job_only(
    other: OperatorProcess, own_namespace: Namespace, loose_cluster: Cluster, tmp_path: Path, depth: int
) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    file = tmp_path / "job.json"
    file.write_text(
        json.dumps(make_manifest(namespace=own_namespace.name, deep="DEEP")).replace('"DEEP"', deep), "utf-8"
    )
    loose_cluster.run([loose_cluster.kubectl, "create", "--validate=false", "-f", file])
    await own_namespace.create_job(make_manifest("honest"))
    await own_namespace.has_pods("honest-1-0", "honest-1-1")
    condition = await own_namespace.has_condition("Unreadable", "True", "Unreadable")
    assert condition["message"].startswith("spec: must not be nested more than 100 levels deep; ")
    assert other.process.poll() is None
    # A new operator finds it in the complete list.
    async with operating(loose_cluster.environment, tmp_path / "second"):
        await own_namespace.create_job(make_manifest("later"))
        await own_namespace.has_pods("honest-1-0", "honest-1-1", "later-1-0", "later-1-1")
