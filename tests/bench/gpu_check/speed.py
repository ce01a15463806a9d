"""Tokens per second and MFU of the trainer beside a plain loop with the same kernels, and the profile of a step."""

import gzip
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.gpu_check.jobs import shaped
from tests.bench.gpu_check.layouts import memory_figures
from tests.bench.gpu_check.pods import Machine, wait_for_step
from tests.bench.gpu_check.result import Check
from tests.bench.gpu_check.sizes import Shape
from trainyard.config import RunConfig
from trainyard.net import free_port
from trainyard.protocol import constants
from trainyard.sizing.peak_memory import rank_memory
from trainyard.sizing.process_memory import GPU_BYTES

RUN_SECONDS = 240.0
FILLED = 0.9
"""Part of a GPU that a shape may fill by the plan."""
RATIO = 0.95
"""Least speed beside the plain loop."""
MFU_1B = 0.40
"""Least MFU of the first shape."""
KERNELS = 15


def check_speed(machine: Machine, shape: Shape, gpu_bytes: int, *, least_mfu: float | None) -> list[Check]:
    """Measure a shape, and return its speed and the profile of one step. `gpu_bytes`: memory of a GPU; 0: unknown."""
    config = largest(shape, machine.ranks, gpu_bytes)
    layers = getattr(config.model, "layers", 0)
    name = f"speed: {shape.name}, {layers} layers, {machine.ranks} ranks"
    volume = machine.folder / f"speed-{shape.name}-volume"
    with machine.run(f"speed {shape.name}", config, 1, {constants.ENV_CHECKPOINTS: str(volume)}) as [pod]:
        wait_for_step(pod, shape.steps, RUN_SECONDS)
    # The first step, and the first two reports, which have the compilation and the trace in them, do not count.
    counted = [report for report in pod.reports if report["step"] > 2 * shape.log_every]
    speed = median(report["tokensPerSecond"] for report in counted)
    mfu = median(report.get("mfu") or 0.0 for report in counted)
    plain = plain_speed(machine, shape, config)
    ratio = speed / plain
    good = None if not machine.gpus else ratio >= RATIO and (least_mfu is None or mfu >= least_mfu)
    detail = f"{speed:,.0f} tokens/s, MFU {mfu:.1%}; plain loop {plain:,.0f} tokens/s; ratio {ratio:.3f}"
    figures: dict[str, Any] = {"tokensPerSecond": speed, "mfu": mfu, "plain": plain, "ratio": ratio}
    figures |= memory_figures(machine, config, pod.memory)
    return [Check(name, good, detail, figures), profile_of(shape, volume / "profiles")]


def largest(shape: Shape, ranks: int, gpu_bytes: int) -> RunConfig:
    """Return the run of a shape with as many layers as fit by the plan."""
    config = shaped(shape, ranks, traced=True)
    layers = getattr(config.model, "layers", 1)
    while gpu_bytes and layers > 1:
        config = shaped(shape, ranks, layers, traced=True)
        if rank_memory(config, 0, True).total + GPU_BYTES <= FILLED * gpu_bytes:
            break
        layers -= 1
    return config


def plain_speed(machine: Machine, shape: Shape, config: RunConfig) -> float:
    """Return the tokens per second of the plain loop.

    Raises:
        RuntimeError: it has failed.
    """
    path = machine.folder / f"plain-{shape.name}.json"
    path.write_text(json.dumps(config.to_dict()))
    port, module = str(free_port()), "tests.bench.gpu_check.plain"
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", module, str(path), str(2 * shape.log_every), str(shape.steps // 2)),
                *(str(rank), str(machine.ranks), port),
            ],
            env={
                **os.environ,
                **machine.visible_gpus(range(machine.ranks)),
                "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(machine.ranks)
    ]
    try:
        output = [rank.communicate(timeout=RUN_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"the plain loop failed: {output[0][1][-500:]}")
    return float(output[0][0])


def profile_of(shape: Shape, folder: Path) -> Check:
    """Return the operations that take the most time of a traced step: kernels on a GPU, operators on processors."""
    name = f"profile: one step of {shape.name}"
    traces = sorted(folder.glob("*.json.gz")) if folder.is_dir() else []
    if not traces:
        return Check(name, passed=False, detail="there is no trace")
    events = json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]
    kinds = {event.get("cat") for event in events}
    kind = "kernel" if "kernel" in kinds else "cpu_op"
    times: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == kind and "dur" in event:
            times[event["name"]] += event["dur"] / 1000
    total = sum(times.values())
    largest_first = sorted(times.items(), key=lambda item: -item[1])[:KERNELS]
    rows = [(name, ms, ms / total) for name, ms in largest_first]
    detail = (
        f"{len(times)} different {kind}s, {total:.1f} ms in sum; {rows[0][0][:80]} first" if rows else "it is empty"
    )
    return Check(name, bool(rows), detail, {"kernels": rows, "trace": str(traces[0])})
