"""Values of Secrets stay in the environment of the workers: no file, status, event or log of a run has one."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.local import PATIENCE, small_job, until_over
from tests.trainer.pods import wait_until
from trainyard.net import free_port
from trainyard.resource.status import Phase
from trainyard_cli.local import local_run

CANARY = "canary-k3vq9x7m2p"
"""The secret; no other text holds it."""
SECRETS = ("AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
FAULT = """
import os
password = os.environ["MY_PASSWORD"]
raise RuntimeError("the program is broken")
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATRAINYARDTESTS00")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")


def files_with(text: str, folder: Path) -> Iterator[Path]:
    """Yield all files below a folder whose content or name holds a text."""
    for path in folder.rglob("*"):
        if text in path.name or (path.is_file() and text.encode() in path.read_bytes()):
            yield path


def environment_of_secrets() -> list[dict[str, Any]]:
    return [{"name": name, "valueFrom": {"secretKeyRef": {"name": "keys", "key": name}}} for name in SECRETS]


CASES: dict[str, tuple[dict[str, Any], Phase, str]] = {
    "a run that succeeds": ({"checkpoint": {"claim": {"size": "1Gi"}}}, Phase.SUCCEEDED, ""),
    "a program that fails with a traceback": (
        {"trainer": None, "image": "any", "command": ["python", "-c", FAULT]},
        Phase.FAILED,
        "the program is broken",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_no_trace_of_a_run_holds_a_secret(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    spec, phase, message = CASES[case]
    env = environment_of_secrets()
    job = small_job("secret", 5, policy={"maxRestarts": 1}, **{"replicas": 1, "env": env, **spec})
    async with local_run(job, tmp_path) as run:
        await until_over(run)
        status, events = run.job.status, list(run.events)
        written = run.job.to_dict()
    assert status.phase is phase, status
    assert message in ("" if status.last_failure is None else status.last_failure.message)
    with_traceback = any(path.name == "log" for path in files_with("Traceback (most recent call last)", tmp_path))
    assert with_traceback == ("command" in spec)
    assert CANARY not in str(written) + repr(events) + "".join(capfd.readouterr())
    assert list(files_with(CANARY, tmp_path)) == []


async def test_no_trace_of_a_wait_for_a_store_holds_a_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run whose store does not answer waits for it, and says so."""
    job = small_job("secret", 5, replicas=1, env=environment_of_secrets(), checkpoint={"url": "s3://bucket/runs"})
    async with local_run(job, tmp_path) as run:
        waits = partial(files_with, "the object store does not answer", tmp_path)
        await asyncio.to_thread(wait_until, lambda: any(waits()), PATIENCE)
        written = run.job.to_dict()
    assert CANARY not in str(written) + repr(list(run.events)) + "".join(capfd.readouterr())
    assert list(files_with(CANARY, tmp_path)) == []


def test_the_search_finds_a_secret_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_text(f"key={CANARY}\n")
    assert list(files_with(CANARY, tmp_path)) == [tmp_path / "a" / "log"]
