"""Admission without an API server: the same schema, the same CEL rules, the same messages.

Where there is a cluster, the API server refuses an invalid manifest by the rules of the CRD. `trainyard run` has no
API server, so this module checks the manifest against the same schema and evaluates the same rules.
"""

import json
from functools import cache
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from pydantic import ValidationError

from trainyard.config import RunConfig
from trainyard.crd import Schema, openapi_schema
from trainyard.manifest import ManifestError, parse_manifest
from trainyard.messages import schema_messages
from trainyard.resolve import layout_problems, spec_problems
from trainyard.resource.job import TrainingJob
from trainyard.sizing.pipeline_stages import stage_count

_TOO_DEEP = "the manifest is nested too deeply; remove the superfluous levels"


def load_manifest(text: str, *, memory: bool = True) -> TrainingJob:
    """Parse one TrainingJob from YAML or JSON and check it as the API server and the operator would.

    A status in the object is ignored.

    Args:
        body: the object, as parsed from JSON or YAML.
        memory: also refuse a job whose estimated memory exceeds that of its devices.
        old: the stored object that `body` updates; transition rules (immutable fields) are then evaluated, too.

    Raises:
        ManifestError: the manifest is invalid; one message per fault.
    """
    return admit(parse_manifest(text), memory=memory)


def admit(body: dict[str, Any], *, memory: bool = True, old: TrainingJob | None = None) -> TrainingJob:
    """Check one object as the API server and the operator would, and return it parsed, with defaults.

    A status in the object is ignored.

    Args:
        body: the object, as parsed from JSON or YAML.
        memory: whether to refuse a job whose estimated memory exceeds that of its devices.
        old: the stored object that `body` updates; transition rules (immutable fields) are then evaluated, too.

    Raises:
        ManifestError: the object is invalid; one message per fault.
    """
    # As on the API server, only the operator sets the status.
    body = {name: value for name, value in body.items() if name != "status"}
    try:
        # Strict JSON, as for the API server: "3" is not an integer, and a tuple is a list.
        job = TrainingJob.model_validate_json(json.dumps(body, default=str), strict=True)
    except RecursionError as error:
        raise ManifestError([_TOO_DEEP]) from error
    except ValidationError as error:
        # The JSON is ours: pydantic's parser refuses nothing else in it.
        too_deep = error.errors()[0]["type"] == "json_invalid"
        raise ManifestError([_TOO_DEEP] if too_deep else schema_messages(error, body)) from error
    if old is not None:
        job = job.replace(status=old.status)
    variables = {"self": job.to_dict()} | ({} if old is None else {"oldSelf": old.to_dict()})
    problems = _broken_rules(openapi_schema(), variables)
    problems = problems or (spec_problems if memory else layout_problems)(job)
    if problems:
        raise ManifestError(problems)
    return job


def broken_layout_rules(config: RunConfig) -> list[str]:
    """Return what is wrong with the layout of a model whose sizes the spec does not say, once they are known.

    The rules are those that admission checks where the spec has the sizes.
    """
    mesh, family = config.mesh, config.family
    values = config.model.to_dict() | {
        "tensor": mesh.tensor,
        "context": mesh.context,
        "expert": mesh.expert,
        "totalStages": stage_count(config.parallelism.pipeline),
        "vocabulary": config.vocabulary,
    }
    in_cel = {name: str(value).lower() for name, value in values.items()}
    problems = [rule.message for rule in family.layout_rules if not _evaluate(rule.cel.format_map(in_cel), {})]
    return family.problems(config.model, config.trainer.model.preset or "none") + problems


def _broken_rules(schema: Schema, variables: dict[str, Any]) -> list[str]:
    """Return the messages of the CEL rules that an object or anything in it breaks.

    `variables`: the object as `self` and, for an update, the stored one as `oldSelf`. A transition rule is evaluated
    only where both exist, as by the API server.
    """
    problems = []
    for rule in schema.get("x-kubernetes-validations", ()):
        applies = "oldSelf" in variables or "oldSelf" not in rule["rule"]
        if applies and not _evaluate(rule["rule"], variables):
            by_object = rule.get("messageExpression")
            problems.append(str(_evaluate(by_object, variables)) if by_object else rule["message"])
    value = variables["self"]
    for name, child in schema.get("properties", {}).items():
        inner = {key: at[name] for key, at in variables.items() if isinstance(at, dict) and name in at}
        if "self" in inner:
            problems += _broken_rules(child, inner)
    # Items of lists have no stored counterpart: the lists are atomic.
    for item in value if isinstance(value, list) and "items" in schema else ():
        problems += _broken_rules(schema["items"], {"self": item})
    return problems


@cache
def _program(expression: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def _evaluate(expression: str, variables: dict[str, Any]) -> Any:
    return _program(expression).evaluate({name: json_to_cel(value) for name, value in variables.items()})
