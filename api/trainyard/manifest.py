"""Manifests as YAML or JSON text: parsed as kubectl parses them, with one-line errors."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from trainyard import contract


class ManifestError(ValueError):
    """A manifest that is refused. `problems` has one message for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """YAML 1.2 as kubectl parses it: 1e-8 is a number, and a key may occur only once in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping, after a check that no key occurs twice."""
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in keys:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark)
            if isinstance(key, Hashable):
                keys.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_manifest(text: str) -> dict[str, Any]:
    """Return the only TrainingJob in a YAML or JSON text, as it is written; objects of other kinds are ignored.

    Raises:
        ManifestError: the text is not valid, or does not contain exactly one TrainingJob.
    """
    try:
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        raise ManifestError([f"not valid YAML: {_describe(error)}"]) from error
    except RecursionError as error:
        raise ManifestError(["not valid YAML: nested too deeply; remove levels of nesting"]) from error
    except ValueError as error:  # a date or a number that cannot be represented
        raise ManifestError([f"not valid YAML: {error}"]) from error
    jobs = [document for document in documents if isinstance(document, dict) and document.get("kind") == contract.KIND]
    if len(jobs) != 1:
        raise ManifestError([_count_problem(documents, len(jobs))])
    job: dict[str, Any] = jobs[0]
    return job


def _describe(error: yaml.YAMLError) -> str:
    """Return the message of a YAML error in one line, with the line and column of the text."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).replace('in "<unicode string>", ', "").split())
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return place + " ".join(filter(None, (error.context, error.problem)))


def _count_problem(documents: list[Any], count: int) -> str:
    """Return the message for a text that contains no TrainingJob, or several."""
    fix = f"give a file with one {contract.KIND}"
    if count > 1:
        return f"one {contract.KIND} is expected, found {count}; {fix}"
    kinds = {str(document.get("kind")) for document in documents if isinstance(document, dict) and document.get("kind")}
    if kinds:
        noun = "kind" if len(kinds) == 1 else "kinds"
        return f"one {contract.KIND} is expected, found {noun} {', '.join(sorted(kinds))}; {fix}"
    found = "found an object without kind" if any(isinstance(d, dict) for d in documents) else "found no object"
    return f"one {contract.KIND} is expected, {found}; {fix}"
