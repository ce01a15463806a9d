"""Private runs for tests: configurations, and entry points of pods whose random numbers are known."""

import os
from typing import Any

from tests.support.run_config import make_config
from tests.trainer import faults
from trainyard.config import RunConfig
from trainyard_trainer.launcher import main as launcher_main
from trainyard_trainer.privacy import budget

KEY = bytes(range(32))
DIGITS: dict[str, Any] = {
    "model": {"name": "mlp", "hiddenSizes": [16]},
    "data": {"source": "table", "builtin": "digits"},
}
LLAMA: dict[str, Any] = {"data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": 16}}


def private(
    data: dict[str, Any] = DIGITS, ranks: int = 1, checkpoint: dict[str, Any] | None = None, **changes: Any
) -> RunConfig:
    """Return a private run; `privacy` replaces parts of a budget, other arguments parts of spec.trainer."""
    privacy = {"epsilon": 8, "delta": 1e-6, "noiseMultiplier": 1, **changes.pop("privacy", {})}
    privacy = {name: value for name, value in privacy.items() if value is not None}
    trainer = {"batch": {"global": 32}, "schedule": {"name": "constant"}, **data, **changes, "privacy": privacy}
    if "model" in data:
        trainer = {"optimizer": {"learningRate": 0.01}, "stop": {"steps": 6}, **trainer}
    return make_config(ranks, checkpoint=checkpoint or {}, replace="model" in data, **trainer)


def known_key() -> None:
    """The key of samples and noise is `KEY`, so that runs can be compared."""
    budget.os.urandom = lambda size: KEY[:size]  # type: ignore[attr-defined]
    launcher_main.main()


def audited_with_known_key() -> None:
    """The same, and each rank writes its samples and final parameters to files."""
    budget.os.urandom = lambda size: KEY[:size]  # type: ignore[attr-defined]
    faults.audit()


def killed_after_step_five() -> None:
    """The same, and the process ends without a word after the fifth step."""
    from trainyard_trainer.train import Trainer

    step = Trainer._step

    def faulty(self: Trainer) -> Any:
        if self.step == 5:
            os._exit(9)
        return step(self)

    Trainer._step = faulty  # type: ignore[method-assign]
    known_key()
