"""Takes a Dockerfile apart into stages, each with a key of all that shapes it.

Buildah has a cache of its own, but up to version 1.43 it does not see that the content of a bind mount has
changed (containers/buildah issue 5400), and it mounts stages that come from the cache as empty folders (issue
4375). So every stage becomes an image, named by its key, and the stages that refer to it name that image.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.model import ClusterError

FROM = re.compile(r"^FROM\s+(?P<base>\S+)(?:\s+AS\s+(?P<name>\S+))?\s*$", re.IGNORECASE)
REFERENCE = re.compile(r"\bfrom=([\w.-]+)")
FORWARDED = re.compile(r"SSL_CERT_FILE|(PIP|UV)_\w+")
"""Environment variables that reach the build if the Dockerfile declares them as ARG: where packages come from."""


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    body: str

    @property
    def instructions(self) -> list[str]:
        """The instructions of the stage, each on one line, without comments."""
        lines = [line for line in self.body.splitlines() if not line.lstrip().startswith("#")]
        return re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()


def stages(dockerfile: str) -> dict[str, Stage]:
    """Return the stages by name; a stage without a name has its number."""
    found: dict[str, Stage] = {}
    current: tuple[str, str] | None = None
    body: list[str] = []

    def close() -> None:
        if current is not None:
            name, base = current
            found[name] = Stage(name, base, "\n".join(body))

    for line in dockerfile.splitlines():
        if match := FROM.match(line):
            close()
            current, body = (match["name"] or str(len(found)), match["base"]), []
        else:
            body.append(line)
    close()
    return found


def context_paths(stage: Stage) -> Iterator[str]:
    """Yield the paths in the build context that a stage reads by COPY, ADD and bind mounts."""
    for instruction in stage.instructions:
        word, *arguments = instruction.split() or [""]
        if word in {"COPY", "ADD"} and not REFERENCE.search(instruction):
            yield from [argument for argument in arguments if not argument.startswith("--")][:-1]
        for mount in re.findall(r"--mount=(\S+)", instruction):
            options = dict(option.partition("=")[::2] for option in mount.split(","))
            if options.get("type", "bind") == "bind" and "from" not in options:
                yield options.get("source") or options.get("src") or "."


def content_digest(path: Path) -> str:
    """Return a digest of a file, or of all files in a folder, with their names and modes."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not path.exists():
        raise ClusterError(f"the Dockerfile reads {path}, which does not exist")
    for file in files:
        if "__pycache__" not in file.parts:
            mode = file.stat().st_mode & 0o777
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(path.parent)} {mode:o} {content}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Recipe:
    """The stages of one Dockerfile over one context and one base image."""

    stages: Mapping[str, Stage]
    context: Path
    base: str
    """The image that ${BASE} stands for."""

    def order(self, target: str) -> list[str]:
        """Return the target and the stages that it needs, in the order in which they are built."""
        if target not in self.stages:
            raise ClusterError(f"the Dockerfile has no target {target}: it has {', '.join(self.stages)}")
        ordered: list[str] = []
        for needed in self._needs(self.stages[target]):
            ordered += [name for name in self.order(needed) if name not in ordered]
        return [*ordered, target]

    def _needs(self, stage: Stage) -> list[str]:
        names = [stage.base, *REFERENCE.findall("\n".join(stage.instructions))]
        return [name for name in names if name in self.stages]

    def text(self, name: str) -> str:
        """Return a Dockerfile of one stage, which names the images of the stages that it refers to."""
        stage = self.stages[name]

        def resolve(base: str) -> str:
            if base in ("$BASE", "${BASE}"):
                return self.base
            return self.tag(base) if base in self.stages else base

        body = REFERENCE.sub(lambda match: f"from={resolve(match[1])}", stage.body)
        return f"FROM {resolve(stage.base)}\n{body}\n"

    def tag(self, name: str) -> str:
        """Return the reference of a stage's image: its tag changes with everything that shapes the image."""
        paths = sorted(set(context_paths(self.stages[name])))
        parts = [self.text(name), *(content_digest(self.context / path) for path in paths)]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return f"{stage_repository(name)}:{key[:16]}"


def stage_repository(name: str) -> str:
    """Return the name of a stage's image, without the tag."""
    return f"localhost/trainyard-stage-{name}"


def declared_arguments(dockerfile: str) -> set[str]:
    """Return the names that ARG declares."""
    return set(re.findall(r"^ARG\s+(\w+)", dockerfile, re.MULTILINE))


def environment_arguments(declared: set[str]) -> dict[str, str]:
    """Return the declared build arguments that the environment sets."""
    return {name: os.environ[name] for name in sorted(declared) if name in os.environ and FORWARDED.fullmatch(name)}
