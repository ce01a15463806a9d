"""What the chart's roles allow, as a table, asked of the real API server with SubjectAccessReviews.

The tables are written by hand and not derived from the chart: a right that is added to or missing from a role is a
difference to this page.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from tests.cluster import Cluster
from tests.cluster.chart import render_chart
from tests.support.kube import Api, connect

SYSTEM = "trainyard-system"
NAMESPACED = ("ServiceAccount", "Role", "RoleBinding")
RBAC_KINDS = (*NAMESPACED, "ClusterRole", "ClusterRoleBinding")
OPERATOR = f"system:serviceaccount:{SYSTEM}:trainyard"

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    *("trainyard.dev/trainingjobs", "trainyard.dev/trainingjobs/status", "trainyard.dev/trainingjobs/scale"),
    *("trainyard.dev/trainingjobs/finalizers", "pods", "pods/exec", "pods/log", "pods/status", "services", "nodes"),
    *("persistentvolumeclaims", "configmaps", "secrets", "events", "namespaces", "serviceaccounts/token"),
    *(
        "coordination.k8s.io/leases",
        "apps/deployments",
        "apps/controllerrevisions",
        "rbac.authorization.k8s.io/clusterroles",
    ),
    *("scheduling.k8s.io/podgroups", "scheduling.x-k8s.io/podgroups", "scheduling.volcano.sh/podgroups"),
    *("scheduling.k8s.io/priorityclasses", "kueue.x-k8s.io/workloads", "kueue.x-k8s.io/localqueues"),
    "apiextensions.k8s.io/customresourcedefinitions",
)
"""Every resource that a review asks about, as GROUP/RESOURCE[/SUBRESOURCE], or RESOURCE for the core group."""

Rights = dict[str, str]
"""The verbs allowed on a resource, separated by blanks; a resource that is absent allows none."""

OPERATOR_RIGHTS: Rights = {
    "trainyard.dev/trainingjobs": "get list watch delete",
    "trainyard.dev/trainingjobs/status": "patch",
    "trainyard.dev/trainingjobs/finalizers": "update",
    "pods": "get list watch create delete",
    "services": "get create",
    "persistentvolumeclaims": "get create",
    "configmaps": "get create patch",
    "secrets": "create",
    "apps/controllerrevisions": "get create",
    "scheduling.k8s.io/podgroups": "get create deletecollection",
    "scheduling.x-k8s.io/podgroups": "get create deletecollection",
    "scheduling.volcano.sh/podgroups": "get create deletecollection",
    "kueue.x-k8s.io/localqueues": "get",
    "events": "create patch",
}
EDIT_RIGHTS: Rights = {
    "trainyard.dev/trainingjobs": "get list watch create update patch delete deletecollection",
    "trainyard.dev/trainingjobs/scale": "get list watch create update patch delete deletecollection",
}
VIEW_RIGHTS: Rights = {
    "trainyard.dev/trainingjobs": "get list watch",
    "trainyard.dev/trainingjobs/status": "get list watch",
}


class Question(NamedTuple):
    """One access that a user may or may not have."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str = ""

    def review(self) -> dict[str, object]:
        """Return the SubjectAccessReview that asks it."""
        first, _, rest = self.resource.partition("/")
        group, rest = (first, rest) if "." in first or first == "apps" else ("", self.resource)
        resource, _, subresource = rest.partition("/")
        attributes = {
            "verb": self.verb,
            "group": group,
            "resource": resource,
            "subresource": subresource,
            "namespace": self.namespace,
            "name": self.name,
        }
        spec = {"user": self.user, "resourceAttributes": attributes}
        return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


async def allowed(api: Api, questions: list[Question]) -> dict[Question, bool]:
    """Ask the API server, some questions at a time."""
    places = asyncio.Semaphore(16)

    async def ask(question: Question) -> bool:
        async with places:
            answer = await api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", question.review())
        return bool(answer["status"]["allowed"])

    answers = await asyncio.gather(*map(ask, questions))
    return dict(zip(questions, answers, strict=True))


async def rights(api: Api, user: str, namespace: str) -> Rights:
    """Return all that a user may do in a namespace, over `VERBS` and `RESOURCES`."""
    answers = await allowed(api, [Question(user, verb, on, namespace) for on in RESOURCES for verb in VERBS])
    found = {on: " ".join(verb for verb in VERBS if answers[Question(user, verb, on, namespace)]) for on in RESOURCES}
    return {on: verbs for on, verbs in found.items() if verbs}


def apply_roles(cluster: Cluster, namespace: str, kinds: tuple[str, ...], *settings: str) -> list[dict[str, Any]]:
    """Apply the chart's objects of some kinds, as an installation in a namespace has them; returns them."""
    create_namespace(cluster, namespace)
    bodies = [body for body in yaml.safe_load_all(render_chart(namespace, *settings)) if body and body["kind"] in kinds]
    cluster.run([cluster.kubectl, "apply", "--server-side", "-f", "-"], input=yaml.safe_dump_all(bodies))
    return bodies


def create_namespace(cluster: Cluster, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.run([cluster.kubectl, "apply", "--server-side", "-f", "-"], input=yaml.safe_dump(body))


@pytest.fixture(scope="module")
def roles(own_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster without an operator, with the roles of a default installation."""
    for name in ("team", "other"):
        create_namespace(own_cluster, name)
    bodies = apply_roles(own_cluster, SYSTEM, RBAC_KINDS)
    for role, user in (("trainyard-edit", "editor"), ("trainyard-view", "viewer")):
        bind(own_cluster, role, user, "team")
    yield own_cluster
    remove(own_cluster, bodies)


def bind(cluster: Cluster, role: str, user: str, namespace: str) -> None:
    """Bind a ClusterRole to a user in a namespace."""
    options = (f"--clusterrole={role}", f"--user={user}", "-n", namespace)
    cluster.run([cluster.kubectl, "create", "rolebinding", f"{user}-{role}", *options])


def remove(cluster: Cluster, bodies: list[dict[str, Any]]) -> None:
    cluster.run([cluster.kubectl, "delete", "-f", "-"], input=yaml.safe_dump_all(bodies))


@pytest.fixture
async def asked(own_cluster: Cluster) -> AsyncIterator[Api]:
    async with connect(own_cluster.kubeconfig) as api:
        yield api


@pytest.mark.usefixtures("roles")
async def test_the_operator_may_do_exactly_this_in_every_namespace(asked: Api) -> None:
    assert await rights(asked, OPERATOR, "team") == OPERATOR_RIGHTS


@pytest.mark.usefixtures("roles")
async def test_in_its_own_namespace_the_operator_may_also_create_leases(asked: Api) -> None:
    assert await rights(asked, OPERATOR, SYSTEM) == {**OPERATOR_RIGHTS, "coordination.k8s.io/leases": "create"}


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "name", "expected"),
    [
        ("get", "secrets", SYSTEM, "trainyard-key", True),
        ("update", "secrets", SYSTEM, "trainyard-key", False),
        ("delete", "secrets", SYSTEM, "trainyard-key", False),
        ("get", "secrets", SYSTEM, "other", False),
        ("get", "secrets", "team", "trainyard-key", False),
        ("get", "coordination.k8s.io/leases", SYSTEM, "trainyard", True),
        ("update", "coordination.k8s.io/leases", SYSTEM, "trainyard", True),
        ("delete", "coordination.k8s.io/leases", SYSTEM, "trainyard", False),
        ("get", "coordination.k8s.io/leases", SYSTEM, "other", False),
        ("update", "coordination.k8s.io/leases", "team", "trainyard", False),
    ],
)
@pytest.mark.usefixtures("roles")
async def test_the_operator_may_read_its_own_key_and_write_its_own_lease_only(
    asked: Api, verb: str, resource: str, namespace: str, name: str, expected: bool
) -> None:
    question = Question(OPERATOR, verb, resource, namespace, name)
    assert await allowed(asked, [question]) == {question: expected}


@pytest.mark.parametrize(("user", "expected"), [("editor", EDIT_RIGHTS), ("viewer", VIEW_RIGHTS)])
@pytest.mark.usefixtures("roles")
async def test_the_roles_for_users_allow_exactly_this(asked: Api, user: str, expected: Rights) -> None:
    assert await rights(asked, user, "team") == expected
    assert await rights(asked, user, "other") == {}


def test_the_roles_for_users_are_part_of_the_roles_edit_admin_and_view_of_kubernetes() -> None:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    roles = {
        body["metadata"]["name"]: {
            label.removeprefix(prefix) for label in body["metadata"]["labels"] if label.startswith(prefix)
        }
        for body in yaml.safe_load_all(render_chart(SYSTEM))
        if body and body["kind"] == "ClusterRole"
    }
    assert roles == {"trainyard": set(), "trainyard-edit": {"admin", "edit"}, "trainyard-view": {"view"}}


@pytest.mark.usefixtures("roles")
async def test_an_operator_of_some_namespaces_has_rights_in_these_only(own_cluster: Cluster, asked: Api) -> None:
    account = "system:serviceaccount:team-system:trainyard"
    create_namespace(own_cluster, "second-team")
    apply_roles(own_cluster, "team-system", NAMESPACED, "operator.watchNamespaces={team,second-team}")
    for name in ("team", "second-team"):
        assert await rights(asked, account, name) == OPERATOR_RIGHTS
    assert await rights(asked, account, "other") == {}
    own = {"secrets": "create", "coordination.k8s.io/leases": "create"}
    assert await rights(asked, account, "team-system") == own
    bodies = yaml.safe_load_all(render_chart(SYSTEM, "operator.watchNamespaces={team,second-team}"))
    assert ("ClusterRole", "trainyard") not in [(body["kind"], body["metadata"]["name"]) for body in bodies if body]


OF_THE_CLUSTER = ("ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition")


def test_an_installation_for_some_namespaces_needs_no_right_on_the_cluster() -> None:
    settings = ("operator.watchNamespaces={team}", "crd.install=false", "userRoles.create=false")
    bodies = [body for body in yaml.safe_load_all(render_chart(SYSTEM, *settings)) if body]
    assert [body["kind"] for body in bodies if body["kind"] in OF_THE_CLUSTER] == []
    # All else is in a namespace, but for the namespace itself, which `helm install` does not create.
    assert [body["kind"] for body in bodies if "namespace" not in body["metadata"]] == ["Namespace"]


def test_the_roles_for_users_need_not_be_part_of_those_of_kubernetes() -> None:
    bodies = [body for body in yaml.safe_load_all(render_chart(SYSTEM, "userRoles.aggregate=false")) if body]
    roles = {body["metadata"]["name"]: body for body in bodies if body["kind"] == "ClusterRole"}
    assert {"trainyard-edit", "trainyard-view"} < set(roles)
    assert "aggregate-to" not in yaml.safe_dump(roles)
