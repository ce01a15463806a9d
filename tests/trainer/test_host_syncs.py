"""How often the host waits for the device: never between two reports.

On a CPU nothing waits, so this counts the operations that would: those that turn a value on the device into a number.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.run_config import make_config
from trainyard.protocol import constants
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer

WAITING = ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero")
"""Methods of a tensor that need its values on the host."""
STEPS = 12


class Counter(Observer, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts by step what waits for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_step: dict[int, list[str]] = {}
        self._step = 0

    def before_step(self, step: int) -> None:
        self._step = step

    def add(self, what: str) -> None:
        self.by_step.setdefault(self._step, []).append(what)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.add(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            counter.add(name)
            return method(self, *arguments, **options)

        return call

    with monkeypatch.context() as patched, counter:
        for name in WAITING:
            patched.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
        yield


@pytest.mark.parametrize("spike_factor", [None, 50.0])
@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_nothing_waits_for_the_device_between_two_reports(
    name: str, spike_factor: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path))
    config = make_config(1, optimizer={"name": name}, stop={"steps": STEPS}, logEverySteps=6)
    policy = config.health.bad_steps.replace(spike_factor=spike_factor)
    config = config.replace(health=config.health.replace(bad_steps=policy))
    trainer = Trainer(config, World(0, 0, 1, 1, torch.device("cpu")), load_samples(config))
    trainer.initialize()
    counter = Counter()
    trainer.observers.append(counter)
    with counting(counter, monkeypatch):
        trainer.run()
    assert trainer.step == STEPS
    # The reports wait: this proves that the counter works.
    assert sorted(counter.by_step) == [1, 6, 12], counter.by_step
