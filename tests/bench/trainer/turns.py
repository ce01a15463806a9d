"""Runs the programs of a case in turns, and times them."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tests.bench.trainer import rank, torchtitan
from tests.bench.trainer.cases import Case, Program
from trainyard.net import free_port

Speeds = dict[Program, float]
"""Tokens per second of each program in one round."""

# Processes are forked from one that has imported all that the trainer needs, as those of a worker are.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # as the launcher of a worker does
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch._dynamo", "trainyard_trainer.rank_process", rank.__name__])


def rounds(case: Case, programs: tuple[Program, ...], cache: str) -> Iterator[Speeds]:
    """Speeds in each round, in which each program has one turn. The first turn of each is not counted."""
    with _started(case, programs, cache) as groups:
        for program in programs:
            _turn(case, program, groups[program])
        for number in range(case.rounds):
            # Another one is first each time, and the direction changes, so that no program always follows the same one.
            order = [programs[(number + place) % len(programs)] for place in range(len(programs))]
            order = order if number % 2 == 0 else order[::-1]
            yield {program: case.tokens / _turn(case, program, groups[program]) for program in order}


def _turn(case: Case, program: Program, connections: list[Connection]) -> float:
    """Seconds that a program takes for its steps: from when its first process begins until its last one ends."""
    for connection in connections:
        connection.send(None)
    times = [_receive(case, program, connection) for connection in connections]
    return max(ended for _, ended in times) - min(began for began, _ in times)


def _receive(case: Case, program: Program, connection: Connection) -> tuple[float, float]:
    try:
        times: tuple[float, float] = connection.recv()
    except EOFError as error:
        raise SystemExit(f"{case.name}: a process of '{program.label}' has ended; its error stands above") from error
    return times


@contextmanager
def _started(case: Case, programs: tuple[Program, ...], cache: str) -> Iterator[dict[Program, list[Connection]]]:
    """All processes, prepared, and the connections to those of each program."""
    groups: dict[Program, list[Connection]] = {}
    with ExitStack() as stack:
        for program in programs:
            start = torchtitan.started(case, program) if program.kind == "torchtitan" else _forked(case, program, cache)
            groups[program] = stack.enter_context(start)
        for program in programs:
            for connection in groups[program]:
                _receive(case, program, connection)
        yield groups


@contextmanager
def _forked(case: Case, program: Program, cache: str) -> Iterator[list[Connection]]:
    """The processes of a program that runs in this environment, and a connection to each that takes turns."""
    processes: list[BaseProcess] = []
    connections: list[Connection] = []
    try:
        for _ in range(program.groups):
            port = free_port()
            for place in range(program.processes + program.servers):
                ours, theirs = _CONTEXT.Pipe()
                arguments = (case, program, place, port, cache, theirs)
                processes.append(_CONTEXT.Process(target=rank.main, args=arguments, daemon=True))
                processes[-1].start()
                theirs.close()
                if place < program.processes:
                    connections.append(ours)
        yield connections
    finally:
        for process in processes:
            process.kill()
            process.join()
