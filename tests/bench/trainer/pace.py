"""How programs take turns: each trains a number of steps, then waits until it is asked again."""

import time
from multiprocessing.connection import Connection

from trainyard_trainer.metrics.observer import Observer


class Pace(Observer):
    """One process's side. The programs own their loops, so it is called after each step, and holds them up there."""

    def __init__(self, parent: Connection, steps: int) -> None:
        self._parent = parent
        self._steps = steps
        self._left = 0
        self._began = 0.0

    def start(self) -> None:
        """Everything is prepared: wait for the first turn."""
        self._parent.send(None)
        self._wait()

    def after_step(self, step: int) -> None:
        """As an observer of the built-in trainer: see `step_done`."""
        self.step_done()

    def step_done(self) -> None:
        """Count a step; the turn's last one also reports when the turn began and ended."""
        self._left -= 1
        if self._left == 0:
            self._parent.send((self._began, time.perf_counter()))
            self._wait()

    def _wait(self) -> None:
        self._parent.recv()
        self._left = self._steps
        self._began = time.perf_counter()
