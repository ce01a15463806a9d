"""Installation from a checkout or a wheel, by the commands that README.md and docs/install.md give."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.need import require

REPOSITORY = Path(__file__).parents[2]
UV = shutil.which("uv") or str(REPOSITORY / ".uv" / "bin" / "uv")
HELPFUL = ("run", "plan", "submit", "top")


def command(
    *argv: str | Path, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment)


def uv(*arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
    done = command(UV, *arguments, "--python", sys.executable, env=env)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(Path(UV).exists(), "uv; run make setup")
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--out-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


def documented(line: str) -> str:
    """Return the line, after a check that the documentation contains it."""
    pages = (REPOSITORY / "README.md", REPOSITORY / "docs" / "install.md")
    assert any(line in page.read_text("utf-8") for page in pages), line
    return line


def test_the_distribution_has_a_name_that_is_its_own(wheel: Path) -> None:
    assert wheel.name.startswith("trainyard_k8s-")
    with ZipFile(wheel) as archive:
        packages = {name.split("/")[0] for name in archive.namelist()}
    assert {"trainyard", "trainyard_operator", "trainyard_trainer", "trainyard_cli"} < packages


def test_the_command_is_installed_from_a_checkout(tmp_path: Path, wheel: Path) -> None:
    words = documented('uv tool install ".[cli]"').replace('"', "").split()
    folders = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    uv(*words[1:], env=folders)
    for name in ("trainyard", "kubectl-trainyard"):
        done = command(tmp_path / "bin" / name, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert all(subcommand in done.stdout for subcommand in HELPFUL)
    assert command(tmp_path / "bin" / "trainyard", "--version", cwd=tmp_path).stdout == f"{version(wheel)}\n"
    plan = command(tmp_path / "bin" / "trainyard", "plan", REPOSITORY / "manifests/samples/hello.yaml", cwd=tmp_path)
    assert (plan.returncode, plan.stderr) == (0, "")


def test_the_reporter_is_installed_into_an_image_of_a_program(tmp_path: Path, wheel: Path) -> None:
    """The image of a user's program has the wheel beside it."""
    documented("uv build --wheel")
    documented(f'pip install "{wheel.name}[report]"')
    uv("venv", "--quiet", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    done = command(UV, "pip", "install", "--quiet", "--python", python, f"{wheel}[report]")
    assert done.returncode == 0, done.stderr
    program = "import sys; from trainyard.reporter import Reporter; print(Reporter.__module__, 'torch' in sys.modules)"
    assert command(python, "-c", program, cwd=tmp_path).stdout == "trainyard.reporter False\n"
    # Every extra installs the scripts; without the packages of "cli" each prints one line.
    for name in ("trainyard", "kubectl-trainyard", "kubectl_complete-trainyard"):
        done = command(tmp_path / "venv" / "bin" / name, "--help", cwd=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: the package ")
        assert line.endswith('install the extra "cli" from a checkout of Trainyard: uv tool install ".[cli]"')
        assert done.stdout == ""


def version(wheel: Path) -> str:
    return wheel.name.split("-")[1]
