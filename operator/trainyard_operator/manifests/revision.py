"""The snapshot of what the operator has accepted, as a ControllerRevision: the pods of a job are built from it alone.

It holds the part of the spec that is immutable while the job is active, and the image of the workers. Its name contains
a hash of both, so that a snapshot that was altered, or belongs to another job, is recognized.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainyard import __version__
from trainyard.resource.immutability import differences, immutable_part, with_mutable_part
from trainyard.resource.job import TrainingJob
from trainyard.resource.spec import TrainingJobSpec
from trainyard_operator.manifests.children import child_metadata
from trainyard_operator.manifests.template import Manifest

_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Revision:
    """One accepted spec of a job."""

    name: str
    """Name of the ControllerRevision: JOB-HASH."""
    spec: Mapping[str, Any]
    """The immutable part of the spec."""
    image: str
    """Image of the worker containers, the default one included."""


def make_revision(job: TrainingJob, trainer_image: str) -> Revision:
    """Return the snapshot of a job as it is now; `trainer_image` is the image of a job that names none."""
    spec, image = immutable_part(job.spec.to_dict()), job.spec.image or trainer_image
    return Revision(_name(job, spec, image), spec, image)


def build_revision(job: TrainingJob, revision: Revision) -> Manifest:
    """Return the manifest of a snapshot."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": child_metadata(job, revision.name),
        "revision": job.metadata.generation,
        "data": {"spec": revision.spec, "image": revision.image, "operatorVersion": __version__},
    }


def read_revision(job: TrainingJob, body: Mapping[str, Any]) -> Revision:
    """Return the snapshot in a ControllerRevision.

    Raises:
        ValueError: its content does not match the hash in its name.
    """
    name, data = body["metadata"]["name"], body.get("data")
    spec, image = (data.get("spec"), data.get("image")) if isinstance(data, dict) else (None, None)
    if not isinstance(spec, dict) or not isinstance(image, str) or _name(job, spec, image) != name:
        raise ValueError(f"ControllerRevision {name} does not hold what the operator stored in it")
    return Revision(name, spec, image)


def accepted_spec(revision: Revision, live: TrainingJobSpec) -> TrainingJobSpec:
    """Return the accepted spec with the live values of the fields that may change while the job is active.

    Raises:
        pydantic.ValidationError: another version of the operator stored a value that this one does not understand.
    """
    # Comparing first keeps one object in memory for the usual case, and saves the parsing.
    if immutable_part(live.to_dict()) == revision.spec:
        return live
    body = with_mutable_part(dict(revision.spec), live.to_dict())
    return TrainingJobSpec.model_validate(body, extra="ignore")


def changed_fields(accepted: TrainingJobSpec, live: TrainingJobSpec) -> tuple[str, ...]:
    """Return the paths of the fields in which the live spec differs from the accepted one."""
    return () if accepted is live else tuple(differences(accepted.to_dict(), live.to_dict(), "spec"))


def revision_hash(name: str) -> str:
    """Return the hash in the name of a snapshot, which the pods have as a label."""
    return name.rpartition("-")[2]


def _name(job: TrainingJob, spec: Mapping[str, Any], image: str) -> str:
    """Return JOB-HASH. With the UID in the hash a job never meets the snapshot of a deleted job of its name."""
    content = json.dumps([job.metadata.uid, spec, image], sort_keys=True, separators=(",", ":"))
    return f"{job.metadata.name}-{hashlib.sha256(content.encode()).hexdigest()[:_HASH_DIGITS]}"
