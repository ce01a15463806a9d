"""The parts of a pod that decide how it gets its node: gang, queue, priority, topology domain."""

from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.affinity import build_affinity, domain_label
from trainyard_operator.manifests.gangs import gang_scheduler, group_name
from trainyard_operator.manifests.kueue import queue_annotations, queue_gates, queue_labels
from trainyard_operator.manifests.template import Manifest, Template, child_list


def scheduling_metadata(
    job: TrainingJob, attempt: int, index: int, *, alone: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels and the annotations by which a pod belongs to its group and to its queue."""
    if alone:
        return {}, {}
    scheduler, group = gang_scheduler(job), group_name(job, attempt)
    labels = {**domain_label(job, index), **queue_labels(job, group)}
    annotations = queue_annotations(job, index)
    if scheduler is not None:
        labels |= scheduler.labels(group)
        annotations |= scheduler.annotations(group)
    return labels, annotations


def scheduling_fields(job: TrainingJob, attempt: int, index: int, template: Template, *, alone: bool) -> Manifest:
    """Return the fields of a pod's spec that decide how it gets its node.

    Args:
        job: the job at its current size.
        attempt: attempt that the pod is created for.
        index: index of the pod in its group.
        template: what the user has given.
        alone: the pod belongs to no group, and so neither to a queue nor to a topology domain.

    Raises:
        TemplateError: a part of the template has another shape than in the API.
    """
    fields: Manifest = {}
    scheduler = gang_scheduler(job)
    if (affinity := build_affinity(job, attempt, index, template, alone=alone)) is not None:
        fields["affinity"] = affinity
    if job.spec.scheduling is not None and job.spec.scheduling.priority_class_name:
        fields["priorityClassName"] = job.spec.scheduling.priority_class_name
    # The template may name another scheduler.
    if scheduler is not None and scheduler.scheduler_name is not None:
        fields["schedulerName"] = scheduler.scheduler_name
    if alone:
        return fields
    if scheduler is not None:
        fields |= scheduler.pod_fields(group_name(job, attempt))
    if gates := queue_gates(job):
        given = child_list(template.spec, "schedulingGates", template.field)
        fields["schedulingGates"] = [*(gate for gate in given if gate not in gates), *gates]
    return fields
