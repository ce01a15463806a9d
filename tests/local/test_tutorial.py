"""docs/tutorial.md: every command of it works, and prints what the page shows."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from trainyard.admission import load_manifest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "tutorial.md"
PART_SECONDS = 600
"""Timeout of a part, on a machine that runs other programs, too."""

FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
OF_THE_MACHINE = re.compile(r"[smhd%](?![a-z])| tokens/s")
"""What follows a figure that depends on the machine: a duration, a share of the time, a throughput."""
OF_THE_TEXTS = re.compile(r"Mi| samples| of them held out")
"""What follows a whole number that depends on the texts, or is an estimate."""
FACTOR, SMALL = 3.0, 0.1
"""By which a measured figure may differ unless both are small (a loss of something that the model knows): the texts of
the first part change whenever a page of docs/ does."""


class Command(NamedTuple):
    """A command of the page, its line there, and the lines that the page shows of its output."""

    line: int
    text: str
    shown: list[str]


class File(NamedTuple):
    """A file that the page shows, to be saved."""

    name: str
    text: str


def blocks(title: str) -> Iterator[tuple[str, str, int]]:
    """Yield language, text and first line of the code blocks of a part of the page."""
    page = PAGE.read_text("utf-8")
    begin = page.index(f"\n## {title}")
    end = page.find("\n## ", begin + 1)
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", page[begin : None if end < 0 else end], re.M | re.S):
        yield found[1], found[2], page.count("\n", 0, begin + found.start(2)) + 1


def steps(title: str) -> Iterator[Command | File]:
    """Yield the files and commands of a part of the page, in order; a file begins with a comment that is its name."""
    for language, text, line in blocks(title):
        if language == "console":
            yield from commands(text, line)
        elif name := re.match(r"# (\S+\.(?:yaml|py))\n", text):
            yield File(name[1], text)


def commands(block: str, line: int) -> Iterator[Command]:
    r"""Yield the commands of a block: lines that begin with "$ ", and those that follow a "\"; others are output."""
    for found in re.finditer(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
        yield Command(line + block.count("\n", 0, found.start()), found[1], found[2].splitlines())


def agrees(shown: str, printed: str) -> bool:
    """Return whether a line is what the page shows, but for spaces; "..." in it stands for any text.

    Whole numbers are the same: steps, restarts, files. A measured figure, or one that depends on the texts, may differ
    by a factor, and one that depends on the machine by any.
    """
    shown, printed = (" ".join(re.sub("[─━█▏▎▍▌▋▊▉]+", " ", line).split()) for line in (shown, printed))
    words = [re.escape(part).replace(r"\.\.\.", ".*") for part in FIGURE.split(shown)]
    found = re.fullmatch(f"({FIGURE.pattern})".join(words), printed)
    return found is not None and all(
        OF_THE_MACHINE.match(shown, figure.end()) is not None
        or figure[0] == value
        or ((not figure[0].isdigit() or OF_THE_TEXTS.match(shown, figure.end())) and _near(figure[0], value))
        for figure, value in zip(FIGURE.finditer(shown), found.groups(), strict=True)
    )


def _near(shown: str, printed: str) -> bool:
    first, second = (float(figure.replace(",", "")) for figure in (shown, printed))
    return first / FACTOR <= second <= first * FACTOR or max(first, second) < SMALL


def missing(shown: list[str], printed: list[str]) -> str | None:
    """Return the first line of the page that was not printed; others may be between two lines at "..." only."""
    position, skips = 0, False
    for line in shown:
        if line.strip() == "...":
            skips = True
            continue
        while skips and position < len(printed) and not agrees(line, printed[position]):
            position += 1
        if position == len(printed) or not agrees(line, printed[position]):
            return line
        position, skips = position + 1, False
    return None if skips or position == len(printed) or not shown else "(the end of the output)"


def run_part(title: str, folder: Path) -> None:
    """Run a part as its reader does, in one shell, and compare the output of each command."""
    work, logs = folder / "build" / "tutorial", folder / "logs"
    work.mkdir(parents=True)
    logs.mkdir()
    for name in ("docs", "manifests"):
        (folder / name).symlink_to(REPOSITORY / name)
    port, script = _free_port(), ["set -euo pipefail"]
    done: list[Command] = []
    for step in steps(title):
        if isinstance(step, File):
            (work / step.name).write_text(step.text)
            continue
        text = step.text.replace("8000", str(port))
        script.append(f"{{ {text}\n}} > {logs}/{len(done)} 2>&1 < /dev/null")
        done.append(step)
    env = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    code = _run("\n".join(script), work, env)
    started = [step for number, step in enumerate(done) if (logs / str(number)).exists()]
    outputs = [(logs / str(number)).read_text("utf-8") for number in range(len(started))]
    print(*(f"$ {step.text}\n{output}" for step, output in zip(started, outputs, strict=True)), sep="\n")
    assert code == 0, f"{PAGE.name}:{started[-1].line}: {started[-1].text}: exit code {code}:\n{outputs[-1]}"
    for step, output in zip(done, outputs, strict=True):
        line = missing(step.shown, output.replace(str(port), "8000").splitlines())
        assert line is None, f"{PAGE.name}:{step.line}: {step.text}: does not print {line!r}, but:\n{output}"


def _run(script: str, folder: Path, env: dict[str, str]) -> int:
    """Run a script of bash, end all of its processes, and return its exit code; 124 after a timeout, as timeout(1)."""
    with subprocess.Popen(["bash", "-c", script], cwd=folder, env=env, start_new_session=True) as process:
        try:
            return process.wait(PART_SECONDS)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            with suppress(ProcessLookupError):  # nothing is left
                os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.timeout(PART_SECONDS + 20)
@pytest.mark.parametrize("title", ["Part 1", "Part 2"])
def test_every_command_of_the_tutorial_works_and_prints_what_the_page_shows(title: str, tmp_path: Path) -> None:
    run_part(title, tmp_path)


def test_the_fields_for_a_cluster_fit_the_manifest_of_the_tutorial() -> None:
    (small,) = (step.text for step in steps("Part 1") if isinstance(step, File))
    (fields,) = (text for language, text, _ in blocks("Part 1") if language == "yaml" and text.startswith("spec:"))
    job = load_manifest(yaml.safe_dump(_merged(yaml.safe_load(small), yaml.safe_load(fields))))
    assert job.spec.trainer is not None
    assert (job.spec.workers.replicas, job.spec.trainer.data.path) == (4, "/data/text")


def _merged(value: Any, change: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(change, dict):
        return change
    return {**value, **{name: _merged(value.get(name), field) for name, field in change.items()}}


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("loss 4.2213  9,520 tokens/s", "loss  3.9 12 tokens/s", True),
        ("loss 4.2213", "loss 13.5", False),
        ("loss 4.2213", "loss nan", False),
        ("loss 0.0281", "loss 0.0412", True),
        ("loss 0.0281", "loss 0.2", False),
        ("│ attempts │ 1 (0 restarts) │", "│ attempts  │ 1 (0 restarts)  │", True),
        ("│ attempts │ 1 (0 restarts) │", "│ attempts  │ 2 (1 restart)  │", False),
        ("step 200/200 in 5s", "step 200/200 in 17s", True),
        ("step 200/200", "step 199/200", False),
        ("96 samples that were held out", "101 samples that were held out", True),
        ("96 samples that were held out", "0 samples that were held out", False),
        ("signed by 4075...", "signed by 4075abc", True),
        ("verified", "not verified", False),
    ],
)
def test_a_line_that_differs_is_found(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same


def test_lines_between_are_left_out_at_three_dots_only() -> None:
    assert missing(["a", "...", "c"], ["a", "b", "c"]) is None
    assert missing(["a", "c"], ["a", "b", "c"]) == "c"
    assert missing(["a"], ["a", "b"]) == "(the end of the output)"
    assert missing(["a", "..."], ["a", "b"]) is None
    assert missing(["...", "d"], ["a", "b"]) == "d"
