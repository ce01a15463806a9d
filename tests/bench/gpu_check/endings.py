"""How a run ends when a rank is killed, hangs, or has no memory: exit codes, messages, and what is left behind."""

import os
import signal
import time
from collections.abc import Callable

from tests.bench.gpu_check.jobs import endless, small
from tests.bench.gpu_check.pods import Machine, Pod, finish, wait_for_step
from tests.bench.gpu_check.result import Check
from tests.bench.gpu_check.sizes import Sizes
from trainyard.protocol import constants
from trainyard.protocol.gpu_faults import OUT_OF_MEMORY, find_gpu_fault

START_SECONDS = 180.0
END_SECONDS = 60.0
TOO_LARGE = 8192
"""Samples of a micro-batch whose activations, about 1 TB, no GPU can hold."""


def _hurt(machine: Machine, sizes: Sizes, name: str, act: Callable[[Pod], None]) -> tuple[list[Pod], list[int], float]:
    """Run two pods, one if there is a single device, hurt the last one in its third step, and wait for the ends.

    Returns the pods, their exit codes, and the seconds that it took.
    """
    pods = 2 if machine.ranks > 1 else 1
    volume = {constants.ENV_CHECKPOINTS: str(machine.folder / f"{name}-volume")}
    with machine.run(name, endless(sizes, machine.ranks // pods * pods), pods, volume) as started:
        wait_for_step(started[0], 3, START_SECONDS)
        began = time.monotonic()
        act(started[-1])
        codes = finish(started, END_SECONDS)
        return started, codes, time.monotonic() - began


def check_kill(machine: Machine, sizes: Sizes) -> Check:
    """Kill a rank: its pod names the cause, and the other pod says that it has lost a peer."""
    pods, codes, seconds = _hurt(machine, sizes, "kill", lambda pod: os.kill(pod.ranks()[-1], signal.SIGKILL))
    words = [pod.word for pod in pods]
    cause = words[-1]
    good = cause is not None and cause.exception == "SIGKILL" and not cause.peer_lost and codes[-1] == 137
    # A peer on the same node may wait for the dead one until its launcher detects the hang: also an effect.
    effect = words[0] if len(pods) > 1 else None
    good = good and (len(pods) == 1 or (effect is not None and (effect.peer_lost or effect.hang is not None)))
    detail = f"exit codes {codes} after {seconds:.1f} s; " + " / ".join(word.message if word else "-" for word in words)
    return Check("a killed rank", good, detail, {"seconds": seconds, "codes": codes})


def check_hang(machine: Machine, sizes: Sizes) -> Check:
    """Stop a rank: every pod reports the hang, and NCCL's flight recorders are on the volume."""
    pods, codes, seconds = _hurt(machine, sizes, "hang", lambda pod: os.kill(pod.ranks()[-1], signal.SIGSTOP))
    words = [pod.word for pod in pods]
    reported = all(word is not None and word.hang is not None for word in words)
    folder = machine.folder / "hang-volume" / "flight-recorder"
    files = len(list(folder.glob("attempt-1-rank-*"))) if folder.is_dir() else 0
    # A stopped process cannot write its file, and gloo has no recorder that a pipe reaches.
    expected = machine.ranks - 1 if machine.gpus and machine.ranks > 1 else 0
    good = reported and set(codes) == {constants.EXIT_HANG} and files >= expected
    detail = f"exit codes {codes} after {seconds:.1f} s, {files} flight recorders of {expected}; " + " / ".join(
        word.message if word else "-" for word in words
    )
    return Check("a rank that hangs", good, detail, {"seconds": seconds, "codes": codes, "flightRecorders": files})


def check_out_of_memory(machine: Machine, sizes: Sizes) -> Check:
    """Ask for more memory than a GPU has: the message has an account, a snapshot and a class."""
    name = "a GPU without memory"
    if not machine.gpus:
        return Check(name, None, "needs a GPU")
    config = small(sizes, 1, batch={"global": TOO_LARGE, "micro": TOO_LARGE})
    volume = {constants.ENV_CHECKPOINTS: str(machine.folder / "memory-volume")}
    with machine.run("memory", config, 1, volume) as [pod]:
        code = finish([pod], START_SECONDS)[0]
    message = f"{pod.word.exception}: {pod.word.message}" if pod.word else pod.stderr[-500:]
    fault = find_gpu_fault(message)
    snapshots = list((machine.folder / "memory-volume").glob("memory-snapshots/*.pickle"))
    good = code == 1 and fault is not None and fault.reason == OUT_OF_MEMORY and len(snapshots) == 1
    return Check(name, good, message, {"code": code, "snapshots": len(snapshots)})
