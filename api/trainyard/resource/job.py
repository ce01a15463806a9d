"""The TrainingJob object, and the names of its pods."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.alias_generators import to_camel

from trainyard.base import ApiModel, Rule, unknown_fields
from trainyard.protocol import constants
from trainyard.resource.immutability import mutable_fields, unchanged
from trainyard.resource.spec import TrainingJobSpec
from trainyard.resource.status import TrainingJobStatus

MAX_NAME = 50
"""Maximum length of a job's name. A pod's host name of at most 63 characters also holds the attempt (5 digits), the
index (4 digits, or `server`) and two dashes."""


class Metadata(BaseModel):
    """Part of an object's metadata that Trainyard reads. Other fields are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, validate_by_name=True)

    name: Annotated[str, Field(min_length=1)]
    """Name of the object, unique in its namespace."""
    namespace: str = "default"
    """Namespace of the object."""
    uid: str = ""
    """Unique id that the API server gave the object; empty before it was stored."""
    generation: int = 0
    """Number of the spec's version, counted by the API server."""
    resource_version: str = ""
    """Version of the whole object, for optimistic concurrency."""
    deletion_timestamp: str | None = None
    """Time at which the deletion of the object was requested; absent unless it is being deleted."""


_MUTABLE = " and ".join(", ".join(mutable_fields(TrainingJobSpec)).rsplit(", ", 1))
# A job is active from the moment at which the operator has recorded an attempt in the status until it has recorded the
# condition Suspended: pods of that spec may exist. spec.suspend alone is only a request.
_INACTIVE = (
    "!has(self.status) || !has(self.status.attempt) || self.status.attempt == 0 || (has(self.status.conditions)"
    " && self.status.conditions.exists(c, c.type == 'Suspended' && c.status == 'True'))"
)

_FINISHED = (
    "has(self.status) && has(self.status.conditions)"
    " && self.status.conditions.exists(c, c.type in ['Succeeded', 'Failed'] && c.status == 'True')"
)
_ACTIVE_MESSAGE = (
    f"spec: only {_MUTABLE} may change while the job is active; set suspend: true, wait for the condition Suspended, "
    "change it, set suspend: false"
)
_FINISHED_MESSAGE = "spec: the job has ended, and a change would have no effect; delete it and create it again"


class TrainingJob(ApiModel):
    """A training run of one model by a group of pods that start, run and restart together."""

    api_version: Literal["trainyard.dev/v1alpha1"] = "trainyard.dev/v1alpha1"
    kind: Literal["TrainingJob"] = "TrainingJob"
    metadata: Metadata
    spec: TrainingJobSpec
    """Desired state of the job: what to train, and with which workers. Fields whose description says so may be changed
    at any time. All others are immutable while the job is active: to change them, set suspend: true, wait for the
    condition Suspended, change them, and set suspend: false. They cannot be changed in a job that has ended."""
    status: TrainingJobStatus = TrainingJobStatus()
    """Observed state of the job, written by the operator."""

    _unknown_fields: tuple[str, ...] = PrivateAttr(())

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"size(self.metadata.name) <= {MAX_NAME}",
            f"metadata.name: must be at most {MAX_NAME} characters, since pods are named NAME-ATTEMPT-INDEX "
            "and a host name has at most 63; choose a shorter name",
        ),
        Rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name: must start with a letter and hold only a-z, 0-9 and '-', since it names a "
            "Service; choose another name",
        ),
        Rule(
            f"({_INACTIVE}) && !({_FINISHED}) || ({unchanged(TrainingJobSpec, 'spec')})",
            _ACTIVE_MESSAGE,
            f"{_FINISHED} ? '{_FINISHED_MESSAGE}' : '{_ACTIVE_MESSAGE}'",
        ),
    )

    @property
    def key(self) -> tuple[str, str]:
        """Return namespace and name, which identify the job in a cluster."""
        return self.metadata.namespace, self.metadata.name

    @property
    def managed_elsewhere(self) -> bool:
        """Whether another controller manages the job, so that the operator does nothing for it."""
        return self.spec.managed_by not in (None, constants.CONTROLLER)

    def with_replicas(self, replicas: int) -> "TrainingJob":
        """Return a copy of the job with another number of workers."""
        return self.replace(spec=self.spec.replace(workers=self.spec.workers.replace(replicas=replicas)))

    @property
    def effective_job(self) -> "TrainingJob":
        """Return the job with the number of workers of its current attempt, which may be smaller (`spec.elastic`)."""
        size = self.status.elastic.replicas if self.status.elastic and self.spec.elastic else None
        return self if size is None or size >= self.spec.workers.replicas else self.with_replicas(size)

    def pod_name(self, attempt: int, index: int) -> str:
        """Return the name of a pod, which is also its host name. The parameter server comes after the workers."""
        suffix = constants.ROLE_SERVER if self.spec.is_parameter_server(index) else index
        return f"{self.metadata.name}-{attempt}-{suffix}"

    def placeholder_name(self, group: int, index: int) -> str:
        """Return the name of a placeholder: a pod that detects and holds capacity for one more worker of a group."""
        return f"{self.metadata.name}-{group}-{constants.ROLE_PLACEHOLDER}-{index}"

    @property
    def unknown_fields(self) -> tuple[str, ...]:
        """Return the paths of the fields below spec that this version of Trainyard does not know, and so ignores."""
        return self._unknown_fields

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> "TrainingJob":
        """Parse an object as the API server returns it, which another version of Trainyard may have written.

        Fields that this version does not know are ignored; `unknown_fields` names those of the spec.

        Raises:
            pydantic.ValidationError: a field that this version knows does not match its type.
        """
        job = cls.model_validate(body, extra="ignore")
        job._unknown_fields = tuple(sorted(unknown_fields(TrainingJobSpec, body["spec"], "spec")))
        return job
