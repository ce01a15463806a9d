"""The key of an image: it changes with all that shapes the image, so that no test runs in yesterday's."""

from pathlib import Path

import pytest

from tests.cluster import ClusterError
from tests.cluster.images.recipe import Recipe, context_paths, declared_arguments, stages
from tests.cluster.paths import REPOSITORY

DOCKERFILE = """\
ARG BASE=python:3.11

FROM ${BASE} AS tools
ARG SSL_CERT_FILE
RUN install --quiet tools

# COPY nothing from a comment
FROM ${BASE} AS wheel
COPY pyproject.toml README.md ./
COPY --chown=1:1 api api
ADD operator \\
    operator
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \\
    --mount=type=bind,source=uv.lock,target=/src/uv.lock \\
    --mount=type=cache,target=/cache build

FROM tools AS trainer
COPY --from=wheel /wheel /wheel
RUN --mount=type=bind,target=/src true

FROM ${BASE}
COPY docs docs
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "README.md", "uv.lock", "api/a.py", "api/deep/b.py", "operator/o.py", "docs/d.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def tags(context: Path, dockerfile: str = DOCKERFILE, base: str = "localhost/base:1") -> dict[str, str]:
    """The tag of each stage."""
    recipe = Recipe(stages(dockerfile), context, base)
    return {name: recipe.tag(name) for name in recipe.stages}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The stages that would be built again."""
    return {name for name in before if before[name] != after[name]}


def test_stages_are_found_with_their_bases_and_those_without_a_name_by_number() -> None:
    assert {name: stage.base for name, stage in stages(DOCKERFILE).items()} == {
        "tools": "${BASE}",
        "wheel": "${BASE}",
        "trainer": "tools",
        "3": "${BASE}",
    }


def test_a_stage_reads_what_it_copies_adds_and_mounts_from_the_context_and_nothing_else() -> None:
    read = {name: sorted(context_paths(stage)) for name, stage in stages(DOCKERFILE).items()}
    assert read == {
        "tools": [],
        "wheel": ["README.md", "api", "operator", "pyproject.toml", "uv.lock"],
        "trainer": ["."],
        "3": ["docs"],
    }


@pytest.mark.parametrize(
    ("file", "rebuilt"),
    [
        ("api/deep/b.py", {"wheel", "trainer"}),
        ("operator/o.py", {"wheel", "trainer"}),
        ("uv.lock", {"wheel", "trainer"}),
        ("docs/d.md", {"3", "trainer"}),  # trainer mounts the whole context
    ],
)
def test_a_changed_file_gives_new_keys_to_the_stages_that_read_it_and_to_those_built_on_them(
    context: Path, file: str, rebuilt: set[str]
) -> None:
    before = tags(context)
    assert tags(context) == before, "nothing has changed"
    (context / file).write_text("changed")
    assert changed(before, tags(context)) == rebuilt


def test_a_new_file_another_name_and_another_mode_change_the_key_and_bytecode_does_not(context: Path) -> None:
    before = tags(context)
    (context / "api" / "__pycache__").mkdir()
    (context / "api" / "__pycache__" / "a.pyc").write_text("bytecode")
    assert changed(before, tags(context)) == set()
    (context / "api" / "new.py").write_text("")
    added = tags(context)
    assert changed(before, added) == {"wheel", "trainer"}
    (context / "api" / "new.py").rename(context / "api" / "renamed.py")
    renamed = tags(context)
    assert changed(added, renamed) == {"wheel", "trainer"}
    (context / "api" / "renamed.py").chmod(0o755)
    assert changed(renamed, tags(context)) == {"wheel", "trainer"}


def test_instructions_arguments_and_the_base_are_part_of_the_key(context: Path) -> None:
    before = tags(context)
    other = DOCKERFILE.replace("install --quiet tools", "install tools")
    assert changed(before, tags(context, other)) == {"tools", "wheel", "trainer"}, "both refer to the stage tools"
    assert changed(before, tags(context, base="localhost/base:2")) == set(before)


def test_the_dockerfile_of_a_stage_names_the_images_of_the_stages_it_refers_to(context: Path) -> None:
    recipe = Recipe(stages(DOCKERFILE), context, "localhost/base:1")
    text = recipe.text("trainer")
    assert text.startswith(f"FROM {recipe.tag('tools')}\n")
    assert f"COPY --from={recipe.tag('wheel')} /wheel /wheel" in text
    assert recipe.text("tools").startswith("FROM localhost/base:1\n")


def test_stages_come_before_those_that_need_them_and_those_that_nothing_needs_are_left_out(context: Path) -> None:
    recipe = Recipe(stages(DOCKERFILE), context, "base")
    assert recipe.order("trainer") == ["tools", "wheel", "trainer"]
    with pytest.raises(ClusterError, match="no target serving: it has tools, wheel, trainer, 3"):
        recipe.order("serving")


def test_a_path_that_does_not_exist_is_an_error(context: Path) -> None:
    (context / "uv.lock").unlink()
    with pytest.raises(ClusterError, match=r"uv\.lock, which does not exist"):
        tags(context)


def test_the_images_of_the_project_change_with_its_code_and_its_lock_file() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    found = stages(text)
    assert declared_arguments(text) >= {"BASE", "SSL_CERT_FILE"}
    recipe = Recipe(found, REPOSITORY, "base")
    for target in ("operator", "trainer"):
        read = {path for name in recipe.order(target) for path in context_paths(found[name])}
        assert {"api", "operator", "trainer", "cli", "pyproject.toml", "uv.lock"} <= read
