"""The list of conditions in a status: one of each type, in a fixed order."""

from collections.abc import Iterable

from trainyard.resource.status import Condition, ConditionType


def with_condition(conditions: tuple[Condition, ...], condition: Condition) -> tuple[Condition, ...]:
    """Return conditions with one added, or replaced by one of the same type.

    If the status of the condition does not change, neither does the time of its last transition.
    """
    before = next((c for c in conditions if c.type == condition.type), None)
    if before is not None and before.status == condition.status:
        condition = condition.replace(last_transition_time=before.last_transition_time)
    others = [c for c in conditions if c.type != condition.type]
    # Conditions of other versions of the operator come last.
    order = {str(known): number for number, known in enumerate(ConditionType)}
    return tuple(sorted([*others, condition], key=lambda c: order.get(c.type, len(order))))


def one_of_each_type(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return the first condition of each type: the API server refuses a list with two of one type."""
    first: dict[str, Condition] = {}
    for condition in conditions:
        first.setdefault(condition.type, condition)
    return tuple(first.values())
