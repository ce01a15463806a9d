"""Reading of jobs from the API server, whose CRD may be of another version than this operator.

Fields that this operator does not know are ignored. A value that it does not understand makes the job unreadable: the
job keeps its place in the cache and its pods, and a condition of the job says which field is the cause.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from trainyard.manifest import MAX_DEPTH
from trainyard.messages import schema_messages
from trainyard.protocol.constants import CONTROLLER
from trainyard.resource.job import Metadata, TrainingJob
from trainyard.resource.status import Condition, ConditionType, Phase, Reason
from trainyard_operator.pod_input.text import clean_text

_MAX_MESSAGE = 1024
_FIX = "correct the field, or install the version of the operator that belongs to the CRD"


@dataclass(frozen=True, slots=True)
class UnreadableJob:
    """A TrainingJob whose spec or status this operator does not understand."""

    metadata: Metadata
    problem: str
    """Which field cannot be read and why, and the fix."""
    conditions: tuple[Mapping[str, Any], ...]
    """The conditions in its status, as they are stored."""
    phase: str | None
    managed_elsewhere: bool
    """Another controller manages the job."""

    @property
    def key(self) -> tuple[str, str]:
        """Return namespace and name, which identify the job in a cluster."""
        return self.metadata.namespace, self.metadata.name

    def status_patch(self, now: datetime) -> dict[str, Any] | None:
        """Return the merge patch of the status that reports the problem; None if the status reports it already."""
        stored = next((c for c in self.conditions if c.get("type") == ConditionType.UNREADABLE), {})
        since = stored.get("lastTransitionTime") if stored.get("status") == "True" else None
        condition = Condition(
            type=ConditionType.UNREADABLE,
            status="True",
            reason=Reason.UNREADABLE,
            message=self.problem,
            last_transition_time=datetime.fromisoformat(since) if isinstance(since, str) else now,
            observed_generation=self.metadata.generation,
        ).to_dict()
        if condition == stored:
            return None
        others = [c for c in self.conditions if c.get("type") != ConditionType.UNREADABLE]
        return {"phase": self.phase or Phase.PENDING, "conditions": [*others, condition]}


def read_job(body: dict[str, Any]) -> TrainingJob | UnreadableJob:
    """Return the job that an object of the API server describes, or the reason why it cannot be read."""
    # JSON may be nested far more deeply than a pod's template ever is, and more deeply than Python can handle.
    if _depth_exceeds(body.get("spec"), MAX_DEPTH):
        return _unreadable(body, f"spec: must not be nested more than {MAX_DEPTH} levels deep")
    try:
        return TrainingJob.from_dict(body)
    except ValidationError as error:
        return _unreadable(body, "; ".join(schema_messages(error, body)))


def _unreadable(body: dict[str, Any], problem: str) -> UnreadableJob:
    status, manager = body.get("status") or {}, (body.get("spec") or {}).get("managedBy")
    conditions = tuple(c for c in status.get("conditions") or () if isinstance(c, dict))
    metadata = Metadata.model_validate(body["metadata"], extra="ignore")
    fix = f"; {_FIX}"
    problem = clean_text(problem, _MAX_MESSAGE - len(fix)) + fix
    return UnreadableJob(
        metadata, problem, conditions, status.get("phase"), managed_elsewhere=manager not in (None, CONTROLLER)
    )


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Return whether dictionaries and lists are nested in each other more than `limit` levels deep."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
        if not level:
            return False
    return True
