"""The affinity of a pod: nodes that it avoids, and the topology domain of its neighbours."""

from collections.abc import Sequence

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard.sizing.topology import domain_index, domain_workers, neighbour_domains
from trainyard_operator.manifests.kueue import kueue_queue
from trainyard_operator.manifests.template import Manifest, Template, child_list, child_object

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_DOMAIN_WEIGHT, _STAGE_WEIGHT, _GROUP_WEIGHT = 100, 50, 10
"""Weights (from 1 to 100) of nodes near pods of the same domain, of neighbouring pipeline stages, and of the group."""


def build_affinity(job: TrainingJob, attempt: int, index: int, template: Template, *, alone: bool) -> Manifest | None:
    """Return the template's affinity with the requirements of the operator; None if it has none.

    Args:
        job: the job at its current size.
        attempt: attempt that the pod is created for.
        index: index of the pod in its group.
        template: what the user has given.
        alone: the pod belongs to no group.

    Raises:
        TemplateError: the template's affinity has another shape than in the API.
    """
    near = not alone and _uses_affinity(job)
    if not (job.status.avoided_nodes or near):
        return None
    affinity = child_object(template.spec, "affinity", template.field)
    field = f"{template.field}.affinity"
    if job.status.avoided_nodes:
        affinity = {**affinity, "nodeAffinity": _avoiding(job.status.avoided_nodes, affinity, field)}
    if near:
        affinity = {**affinity, "podAffinity": _near(job, attempt, index, affinity, field)}
    return affinity


def domain_label(job: TrainingJob, index: int) -> dict[str, str]:
    """Return the label with the topology domain of a worker, to which the preferences of its neighbours refer."""
    if not _uses_affinity(job) or job.spec.is_parameter_server(index):
        return {}
    return {constants.LABEL_DOMAIN: str(domain_index(job.spec, index))}


def _uses_affinity(job: TrainingJob) -> bool:
    """Return whether the pods find their topology domain by affinity.

    A queue of Kueue assigns nodes itself: it gets the request as annotations, and ignores affinity among pods.
    """
    scheduling = job.spec.scheduling
    return scheduling is not None and scheduling.topology_key is not None and kueue_queue(job) is None


def _avoiding(nodes: Sequence[str], affinity: Manifest, field: str) -> Manifest:
    """Return a node affinity with the requirement to avoid nodes."""
    # By name, since a node's label may differ from it. The API server accepts one value in each such requirement.
    avoided = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    node_affinity = child_object(affinity, "nodeAffinity", field)
    required = child_object(node_affinity, _REQUIRED, f"{field}.nodeAffinity")
    terms = child_list(required, "nodeSelectorTerms", f"{field}.nodeAffinity.{_REQUIRED}") or [{}]
    # The scheduler needs only one of the terms to match, so each must contain the requirement.
    required["nodeSelectorTerms"] = [
        {**term, "matchFields": [*child_list(term, "matchFields", field), *avoided]} for term in terms
    ]
    return {**node_affinity, _REQUIRED: required}


def _near(job: TrainingJob, attempt: int, index: int, affinity: Manifest, field: str) -> Manifest:
    """Return a pod affinity with preferences for the nodes near the pod's neighbours.

    They are no requirements: the scheduler chooses the nodes of one pod after another, and the first pods of a domain
    do not know whether the others still fit beside them. A requirement would make such a group unschedulable for ever.
    """
    pod_affinity = child_object(affinity, "podAffinity", field)
    preferred = list(child_list(pod_affinity, _PREFERRED, f"{field}.podAffinity"))
    if not job.spec.is_parameter_server(index):
        domain = domain_index(job.spec, index)
        if domain_workers(job.spec) > 1:
            preferred.append(_preference(_DOMAIN_WEIGHT, job, attempt, domain))
        if others := neighbour_domains(job.spec, domain):
            preferred.append(_preference(_STAGE_WEIGHT, job, attempt, *others))
    preferred.append(_preference(_GROUP_WEIGHT, job, attempt))
    return {**pod_affinity, _PREFERRED: preferred}


def _preference(weight: int, job: TrainingJob, attempt: int, *domains: int) -> Manifest:
    """Return the preference for nodes near the pods of an attempt in some domains; without domains near all of them."""
    assert job.spec.scheduling is not None
    labels = {constants.LABEL_JOB: job.metadata.name, constants.LABEL_ATTEMPT: str(attempt)}
    selector: Manifest = {"matchLabels": labels}
    if domains:
        values = [str(domain) for domain in domains]
        selector["matchExpressions"] = [{"key": constants.LABEL_DOMAIN, "operator": "In", "values": values}]
    term = {"labelSelector": selector, "topologyKey": job.spec.scheduling.topology_key}
    return {"weight": weight, "podAffinityTerm": term}
