"""`trainyard run` with checkpoints and data in an object store: the manifest for a cluster works on this machine."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import trainer_spec
from tests.support.local import losses, processes, reports, small_job, until_over, until_step
from tests.support.need import require
from tests.support.object_store import ObjectStore, object_store, server_program
from trainyard.resource.status import Phase
from trainyard_cli.local import local_run

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
STEPS = 200


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    require(server_program(), "uv, to install moto's server")
    with object_store() as running:
        for name in KEYS:
            monkeypatch.setenv(name, running.environment[name])
        yield running


async def test_a_job_learns_from_and_resumes_from_an_object_store(tmp_path: Path, store: ObjectStore) -> None:
    """Keys come from a Secret there, and from the shell here. A killed rank costs the steps since the checkpoint."""
    bucket = store.make_bucket()
    text = "".join(f"sentence {number} of the corpus. " for number in range(20_000))
    store.request("PUT", f"{bucket.removeprefix('s3://')}/corpus/a.txt", text.encode())
    secrets = [{"name": name, "valueFrom": {"secretKeyRef": {"name": "keys", "key": name}}} for name in KEYS]
    plain = {name: store.environment[name] for name in ("AWS_REGION", "AWS_ENDPOINT_URL")}
    model = {"name": "llama", "preset": "nano", "dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64}
    data = {"source": "text", "path": f"{bucket}/corpus/*.txt", "sequenceLength": 16}
    job = small_job(
        "store",
        STEPS,
        env=[*secrets, *({"name": name, "value": value} for name, value in plain.items())],
        checkpoint={"url": f"{bucket}/runs", "everySteps": 50, "async": False},
        trainer=trainer_spec(model=model, data=data, batch={"global": 8}, stop={"steps": STEPS}, logEverySteps=1),
    )
    async with local_run(job, tmp_path) as run:
        await until_step(run, 50, saved=True)
        os.kill(processes(run, 1)[1][0].pid, signal.SIGKILL)
        await until_over(run)
        status = run.job.status
    assert (status.phase, status.attempt) == (Phase.SUCCEEDED, 2), status
    assert status.progress is not None
    assert status.progress.checkpoint_step == STEPS
    assert next(entry["resumedStep"] for entry in reports(tmp_path) if "resumedStep" in entry) >= 50
    assert sorted(losses(tmp_path)) == list(range(1, STEPS + 1))
    assert not (tmp_path / "checkpoints").exists()
    listed = store.request("GET", f"{bucket.removeprefix('s3://')}?list-type=2").decode()
    assert f"<Key>runs/{job.metadata.namespace}/store/step-{STEPS:08d}/manifest.json</Key>" in listed
