"""CRDs of the groups of gang schedulers and of the queues of Kueue, for API servers without them."""

from tests.support.kube import Object


def _crd(group: str, version: str, *, kind: str = "PodGroup", **fields: str) -> Object:
    """The CRD of a scheduler's groups or queues, as far as its documentation has the fields that are used here."""
    integer, text = {"type": "integer", "format": "int32"}, {"type": "string"}
    spec = {name: integer if value == "integer" else text for name, value in fields.items()}
    properties = {"spec": {"type": "object", "properties": spec}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": properties}}
    singular = kind.lower()
    names = {"kind": kind, "plural": f"{singular}s", "singular": singular, "listKind": f"{kind}List"}
    served = {"name": version, "served": True, "storage": True, "schema": schema}
    metadata: Object = {"name": f"{singular}s.{group}"}
    if group.endswith(".x-k8s.io"):
        metadata["annotations"] = {"api-approved.kubernetes.io": "unapproved, a test"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


GANG_CRDS = {
    "coscheduling": _crd("scheduling.x-k8s.io", "v1alpha1", minMember="integer", scheduleTimeoutSeconds="integer"),
    "volcano": _crd(
        "scheduling.volcano.sh", "v1beta1", minMember="integer", queue="string", priorityClassName="string"
    ),
}
LOCAL_QUEUES = _crd("kueue.x-k8s.io", "v1beta2", kind="LocalQueue", clusterQueue="string")
