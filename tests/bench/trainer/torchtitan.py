"""torchtitan as a program of the benchmark: its environment, and the processes of a run."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import torch

from tests.bench.trainer.cases import Case, Program
from trainyard.net import free_port

ROOT = Path(__file__).parents[3]
ENVIRONMENT = ROOT / "build/bench/torchtitan"
REQUIREMENTS = ("torchtitan==0.3.0", "datasets<4.8", f"torch=={torch.__version__.partition('+')[0]}")
"""torchtitan needs an older version of datasets than the trainer, and is to run on the same torch."""
SCRIPT = Path(__file__).with_name("programs") / "torchtitan_rank.py"


@cache
def interpreter() -> Path | None:
    """The interpreter of its environment, which is made by uv if it is not there; None without uv or the packages."""
    python = ENVIRONMENT / "bin/python"
    uv = shutil.which("uv", path=f"{ROOT / '.uv/bin'}{os.pathsep}{os.environ['PATH']}")
    if python.exists() or uv is None:
        return python if python.exists() else None
    made = subprocess.run([uv, "venv", "-q", ENVIRONMENT], check=False).returncode == 0
    install = [uv, "pip", "install", "-q", "--python", str(python), *REQUIREMENTS]
    if made and subprocess.run(install, check=False).returncode == 0:
        return python
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    return None


@contextmanager
def started(case: Case, program: Program) -> Iterator[list[Connection]]:
    """Start its ranks, and yield a connection to each: it says when the rank is ready, and takes turns."""
    python = interpreter()
    assert python is not None
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/ranks"
        arguments = [str(python), str(SCRIPT), address, str(case.steps), json.dumps(settings(case, program, folder))]
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        sizes = {"WORLD_SIZE": str(program.processes), "LOCAL_WORLD_SIZE": str(program.processes)}
        ranks: list[subprocess.Popen[bytes]] = []
        path = Path(folder, "log")
        with Listener(address) as listener, path.open("wb") as log:
            try:
                for rank in range(program.processes):
                    env = {**os.environ, **rendezvous, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                    ranks.append(subprocess.Popen(arguments, env=env, stdout=log, stderr=log))
                yield [_accept(listener, ranks, path) for _ in ranks]
            finally:
                for process in ranks:
                    process.kill()
                    process.wait()


def settings(case: Case, program: Program, folder: str) -> dict[str, Any]:
    """Model, batch and layout of the run, for the program of the other environment."""
    config = case.config(program)
    mesh = config.mesh
    return {
        "model": {**config.model.to_dict(), "vocabulary": config.vocabulary},
        "layout": {axis: getattr(mesh, axis) for axis in ("replicate", "shard", "tensor", "pipeline")},
        "sequence": case.sequence_length,
        "batch": case.global_batch // mesh.data,
        "micro": config.micro_batch,
        "folder": folder,
    }


def _accept(listener: Listener, ranks: list[subprocess.Popen[bytes]], log: Path) -> Connection:
    """Wait for a rank to connect, unless one of them has ended."""
    waiting = listener._listener._socket  # type: ignore[attr-defined]
    waiting.settimeout(1)
    while all(process.poll() is None for process in ranks):
        try:
            return listener.accept()
        except TimeoutError:
            continue
    raise SystemExit(f"torchtitan: a rank has ended:\n{log.read_text()[-2000:]}")
