"""Acceptance of specs: the API server is asked about them, snapshots of them are stored, and read again later."""

from dataclasses import dataclass

from pydantic import ValidationError

from trainyard.messages import schema_messages
from trainyard.resource.job import TrainingJob
from trainyard.resource.spec import TrainingJobSpec
from trainyard.resource.status import ConditionType, Reason
from trainyard_operator.controller.backend import Backend, Refused
from trainyard_operator.lifecycle.actions import AcceptSpec
from trainyard_operator.lifecycle.observation import Acceptance, CreationError
from trainyard_operator.manifests.children import build_shared, secret_name
from trainyard_operator.manifests.pod import build_pod
from trainyard_operator.manifests.revision import (
    Revision,
    accepted_spec,
    build_revision,
    changed_fields,
    make_revision,
    read_revision,
)
from trainyard_operator.manifests.template import Manifest, TemplateError
from trainyard_operator.pod_input.text import clean_text

_MAX_MESSAGE = 4096
_RESTORE = "set suspend: true, wait for the condition Suspended and set suspend: false to accept the spec as it is now"


@dataclass(frozen=True, slots=True)
class AcceptedJob:
    """What a job runs: its accepted spec, with the live values of the fields that may change."""

    generation: int
    """Generation of the live spec that it was made from."""
    revision: str | None
    """Name of the snapshot that it was made from."""
    spec: TrainingJobSpec
    """The spec, with the accepted image also where it is the default one."""
    changed: tuple[str, ...] = ()
    """Paths of the immutable fields in which the live spec differs."""
    problem: CreationError | None = None
    """Why the snapshot cannot be used; `spec` is the live one then."""


async def accept(backend: Backend, job: TrainingJob, action: AcceptSpec, trainer_image: str) -> Acceptance:
    """Ask the API server about a spec, and store a snapshot of it.

    Raises:
        BackendError: a request failed that is to be repeated.
    """
    if action.dry_run and (problem := await _dry_run(backend, job, trainer_image)):
        return Acceptance(problem=clean_text(problem, _MAX_MESSAGE))
    revision = make_revision(job, trainer_image)
    try:
        read_revision(job, await backend.store_revision(job, build_revision(job, revision)))
    except Refused as error:
        return Acceptance(refusal=CreationError(error.reason, clean_text(str(error), _MAX_MESSAGE)))
    except ValueError as error:
        fix = "delete it, so that the operator stores it again"
        return Acceptance(refusal=CreationError(Reason.REVISION_ALTERED, f"{error}; {fix}"))
    return Acceptance(revision=revision.name)


async def load_accepted(
    backend: Backend, job: TrainingJob, cached: AcceptedJob | None, trainer_image: str
) -> AcceptedJob:
    """Return what a job runs; `cached` is the result of the last call for the same job.

    Raises:
        BackendError: a request failed.
    """
    status, generation = job.status, job.metadata.generation
    name = status.accepted_revision
    # Only an active job runs from a snapshot: the next start accepts the live spec.
    if name is None or status.finished or status.is_true(ConditionType.SUSPENDED):
        return AcceptedJob(generation, None, job.spec)
    if cached and (cached.generation, cached.revision, cached.problem) == (generation, name, None):
        return cached
    revision = make_revision(job, trainer_image)
    # The live spec and the image of this operator are those that were accepted: the snapshot need not be read.
    if revision.name == name:
        return AcceptedJob(generation, name, _with_image(job.spec, revision.image))
    body = await backend.load_revision(job, name)
    if body is None:
        return _unknown(job, name, Reason.REVISION_MISSING, "does not exist any more")
    try:
        return _from_snapshot(job, read_revision(job, body))
    except ValidationError as error:
        words = "; ".join(schema_messages(error, {}))
        return _unknown(job, name, Reason.REVISION_ALTERED, f"cannot be read ({words})")
    except ValueError:
        return _unknown(job, name, Reason.REVISION_ALTERED, "was altered")


def _from_snapshot(job: TrainingJob, revision: Revision) -> AcceptedJob:
    spec = accepted_spec(revision, job.spec)
    changed = changed_fields(spec, job.spec)
    return AcceptedJob(job.metadata.generation, revision.name, _with_image(spec, revision.image), changed)


def _with_image(spec: TrainingJobSpec, image: str) -> TrainingJobSpec:
    # Without a cluster there are no images.
    return spec if image in ("", spec.image) else spec.replace(image=image)


def _unknown(job: TrainingJob, name: str, reason: Reason, what: str) -> AcceptedJob:
    """Return the live spec, with the problem that keeps pods from being created from it."""
    message = (
        f"ControllerRevision {name}, which holds the accepted spec, {what}; pods that run continue, and none is "
        f"created; {_RESTORE}, or restore it from a backup"
    )
    problem = CreationError(reason, clean_text(message, _MAX_MESSAGE))
    return AcceptedJob(job.metadata.generation, name, job.spec, problem=problem)


async def _dry_run(backend: Backend, job: TrainingJob, trainer_image: str) -> str | None:
    """Return why the pods of a job cannot be created from its templates; None if they can."""
    roles = {"spec.workers.template": 0}
    if job.spec.servers:
        roles["spec.parameterServer.template"] = job.spec.workers.replicas
    for template, index in roles.items():
        try:
            pod = _build_first(backend, job, index, trainer_image)
        except TemplateError as error:
            return str(error)
        # A template may hold anything: whatever cannot be merged is not a part of a pod.
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return f"{template}: is not a part of a pod ({type(error).__name__}: {error}); correct it"
        if problem := await backend.dry_run(job, pod):
            return f"{template}, or another field from which the pod is made: {problem}; correct it"
    return None


def _build_first(backend: Backend, job: TrainingJob, index: int, trainer_image: str) -> Manifest:
    """Return a pod of the next attempt, after all other children have been built as well.

    It belongs to no group: a gang scheduler or a queue that the cluster lacks is no fault of the spec.
    """
    token = backend.launcher_token(job)
    build_shared(job, token)
    secret = secret_name(job, token) if job.spec.restarts_in_place else None
    return build_pod(job, job.status.attempt + 1, index, trainer_image=trainer_image, secret=secret, alone=True)
