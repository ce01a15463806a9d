"""CRDs of the group objects of gang schedulers, for API servers without these schedulers."""

from tests.support.kube import Object


def _crd(group: str, version: str, **fields: str) -> Object:
    """The CRD of the groups of a gang scheduler, as far as its documentation has the fields that are used here."""
    integer, text = {"type": "integer", "format": "int32"}, {"type": "string"}
    spec = {name: integer if kind == "integer" else text for name, kind in fields.items()}
    properties = {"spec": {"type": "object", "properties": spec}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": properties}}
    names = {"kind": "PodGroup", "plural": "podgroups", "singular": "podgroup", "listKind": "PodGroupList"}
    served = {"name": version, "served": True, "storage": True, "schema": schema}
    metadata: Object = {"name": f"podgroups.{group}"}
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
