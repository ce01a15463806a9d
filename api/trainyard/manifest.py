"""Manifests as YAML or JSON text, parsed as by kubectl: YAML 1.2 numbers, no duplicate keys, one-line errors."""

import re
from typing import Any

import yaml

from trainyard.protocol import constants

MAX_DEPTH = 100
"""Levels of nesting that are accepted. A TrainingJob with a complete pod template has about 15."""


class ManifestError(ValueError):
    """A manifest that cannot be accepted. `problems` holds one message per fault: field, rule and fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def parse_manifest(text: str) -> dict[str, Any]:
    """Return the only TrainingJob in a YAML or JSON text, unchecked. Objects of other kinds are ignored.

    Raises:
        ManifestError: the text is not valid YAML, repeats a key, is nested too deeply, or does not contain exactly one
            TrainingJob.
    """
    try:
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        raise ManifestError([f"not valid YAML: {_describe(error)}"]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"line {line}: the character U+{error.character:04X} is not allowed; remove it"
        raise ManifestError([f"not valid YAML: {problem}"]) from error
    except ValueError as error:  # a date or a number that Python cannot represent
        raise ManifestError([f"not valid YAML: {error}"]) from error
    jobs = [document for document in documents if isinstance(document, dict) and document.get("kind") == constants.KIND]
    if len(jobs) != 1:
        raise ManifestError([_count_problem(documents, len(jobs))])
    job: dict[str, Any] = jobs[0]
    return job


def _count_problem(documents: list[Any], count: int) -> str:
    """Return the message for a text that contains no TrainingJob, or several."""
    objects = [document for document in documents if isinstance(document, dict)]
    kinds = sorted({str(document["kind"]) for document in objects if document.get("kind")})
    if count > 1:
        found = str(count)
    elif kinds:
        found = f"{'kind' if len(kinds) == 1 else 'kinds'} {', '.join(kinds)}"
    else:
        found = "an object without kind" if objects else "no object"
    return f"one {constants.KIND} is expected, found {found}; give a file with one {constants.KIND}"


def _describe(error: yaml.MarkedYAMLError) -> str:
    """Return where and why a text is invalid, in one line."""
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    start = f" from line {error.context_mark.line + 1}" if error.context_mark else ""
    context = f" ({error.context}{start})" if error.context else ""
    return f"{place}{error.problem or 'unreadable'}{context}"


class _Loader(yaml.SafeLoader):
    """A loader that refuses duplicate keys, deep nesting, and aliases of an enclosing node.

    1e-8 is a number, as in YAML 1.2 and in kubectl; PyYAML follows YAML 1.1, where it must be written 1.0e-8.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._enclosing: list[yaml.Mark] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node. It must not be nested too deeply, nor contain itself through an alias."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if len(self._enclosing) >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        self._enclosing.append(mark)
        node = super().compose_node(parent, index)
        self._enclosing.pop()
        if node is not None and any(node.start_mark is enclosing for enclosing in self._enclosing):
            raise yaml.MarkedYAMLError(problem="an alias of a node that contains it", problem_mark=mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose one mapping. Its keys must differ from each other."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                problem = f"the key {key.value} is set twice, first in line {lines[key.value]}; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
