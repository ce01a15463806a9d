"""Memory of each rank while a job trains, started as in a pod."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.bench.trainer.cases import make_config
from tests.bench.trainer.layouts import Layout
from trainyard.protocol import constants

MEMORY_MODEL: dict[str, Any] = {"preset": "small", "layers": 4}
"""28 million parameters: what a layout saves is more than what torch itself takes."""
SEQUENCE_LENGTH = 256
BATCH = 8
EVERY_SECONDS = 0.03


def peak_memory(layout: Layout, cache: str, model: dict[str, Any], steps: int) -> float:
    """Largest proportional set size (PSS) that the largest rank has had, in MiB.

    Pages that several processes share count for each by its part, so that those of all ranks add up to what the machine
    needs. Linux only.
    """
    config = make_config(
        model,
        SEQUENCE_LENGTH,
        BATCH,
        layout.processes,
        layout.parallelism,
        {"stop": {"steps": steps}, "activationCheckpointing": layout.checkpointing},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(config.to_dict()))
        env = {
            **os.environ,
            "PET_NPROC_PER_NODE": str(layout.processes),
            "OMP_NUM_THREADS": "1",
            constants.ENV_CONFIG: str(path),
            constants.ENV_CACHE: cache,
            constants.ENV_METRICS_PORT: "0",
        }
        command = [sys.executable, "-m", "trainyard_trainer"]
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as pod:
            peaks = _watch(pod)
    if pod.returncode:
        raise SystemExit(f"{layout.name}: the worker ended with {pod.returncode}; its error stands above")
    return max(peaks.values()) / 2**20


def _watch(pod: subprocess.Popen[bytes]) -> dict[int, int]:
    """Largest PSS in bytes of each training process, by process id, until all have ended."""
    peaks: dict[int, int] = {}
    agent = psutil.Process(pod.pid)
    while pod.poll() is None:
        try:
            for process in agent.children():
                peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue
        time.sleep(EVERY_SECONDS)
    return peaks
