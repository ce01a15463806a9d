"""Everything that only a machine with GPUs can show, in about ten minutes on one or eight of them, without a network.

    python -m tests.bench.gpu_check [--device cpu] [--folder build/gpu-check]

Writes report.json and report.md. `--device cpu` runs the same code with tiny sizes and gloo, to show that it works.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu_check import result
from tests.bench.gpu_check.endings import check_hang, check_kill, check_out_of_memory
from tests.bench.gpu_check.layouts import check_layouts, check_memory
from tests.bench.gpu_check.pods import ROOT, Machine
from tests.bench.gpu_check.result import Check, ask
from tests.bench.gpu_check.sizes import ON_CPUS, ON_GPUS, Sizes
from tests.bench.gpu_check.speed import MFU_1B, check_speed
from tests.bench.gpu_check.torn_state import COMPLETE

TORN_SECONDS = 180.0


def main(arguments: list[str] | None = None) -> int:
    """Check, print each answer as it comes, write the report; 1 if something has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only show that the check works")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu-check", help="where the report is written")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only parts whose name contains this")
    options = parser.parse_args(arguments)
    gpus = torch.cuda.device_count() if options.device == "cuda" else 0
    if options.device == "cuda" and not gpus:
        parser.error("this machine has no GPU that torch can use; --device cpu shows that the check works")
    began = time.monotonic()
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        machine = Machine(gpus, gpus or 2, Path(folder))
        for check in answers(machine, ON_GPUS if gpus else ON_CPUS, options.only):
            checks.append(check)
            print(f"{time.monotonic() - began:6.1f} s  {check.verdict:6}  {check.name}: {check.detail}", flush=True)
    result.write(options.folder, describe(machine), checks, time.monotonic() - began)
    print(f"{options.folder / 'report.md'}")
    return int(any(check.passed is False for check in checks))


def answers(machine: Machine, sizes: Sizes, only: str) -> Iterator[Check]:
    """Yield the answers, the most important ones first. `only`: parts whose name contains this."""
    checks: list[Check] = []
    quick = not machine.gpus
    if only in "torn state":
        yield ask("torn state", lambda: check_torn_state(machine, sizes))
    if only in "losses":
        for check in check_layouts(machine, sizes, quick=quick):
            checks.append(check)
            yield check
    if only in "endings":
        yield ask("a killed rank", lambda: check_kill(machine, sizes))
        yield ask("a rank that hangs", lambda: check_hang(machine, sizes))
        yield ask("a GPU without memory", lambda: check_out_of_memory(machine, sizes))
    if only in "speed":
        memory = torch.cuda.get_device_properties(0).total_memory if machine.gpus else 0
        for number, shape in enumerate(sizes.shapes):
            least = MFU_1B if number == 0 else None
            try:
                found = check_speed(machine, shape, memory, least_mfu=least)
            except (OSError, RuntimeError, ValueError) as error:
                found = [Check(f"speed: {shape.name}", passed=False, detail=f"{type(error).__name__}: {error}")]
            checks += found
            yield from found
        yield check_memory(checks)


def check_torn_state(machine: Machine, sizes: Sizes) -> Check:
    """Save while the device still works on the update; the checkpoint has the state after it, and nothing later.

    In contrast, torch's own stager does the same without waiting for the update.
    """
    command = [sys.executable, "-m", "tests.bench.gpu_check.torn_state", str(machine.folder / "torn")]
    done = subprocess.run(
        [*command, str(sizes.torn_mib)],
        env={**os.environ, **machine.visible_gpus(range(min(1, machine.gpus)))},
        capture_output=True,
        text=True,
        timeout=TORN_SECONDS,
        check=False,
    )
    if done.returncode:
        return Check("torn state", passed=False, detail=done.stderr[-500:])
    return judge_torn_state(json.loads(done.stdout))


def judge_torn_state(values: dict[str, list[float]]) -> Check:
    """Return the answer for the values of `torn_state`: passed only where a checkpoint without the wait is torn."""
    torn = {name: found != COMPLETE for name, found in values.items()}
    if torn["ordered"]:
        passed, proof = False, ""
    elif torn["torch"]:
        passed, proof = True, ""
    elif torn["bare"]:
        passed, proof = None, "; proves nothing: torch's stager waits by itself here"
    else:
        passed, proof = None, "; proves nothing: no copy can overtake the update here"
    contrast = f"{'yes' if torn['torch'] else 'no'} (torch's stager {values['torch']}, a bare copy {values['bare']})"
    detail = (
        f"values in the checkpoint: {values['ordered']}, expected {COMPLETE}; torn without the wait: {contrast}{proof}"
    )
    return Check("torn state", passed, detail, {"values": values, "tornWithoutWait": torn["torch"]})


def describe(machine: Machine) -> dict[str, Any]:
    """Return what the figures depend on."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ranks": machine.ranks,
        "device": machine.device,
    }
    if machine.gpus:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpuMemoryGiB": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        }
    return found
