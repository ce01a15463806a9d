"""Computes steps of a run again, and compares their figures and weights with those that were recorded."""

import math
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainyard.text import plural
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.checkpoint.storage import load
from trainyard_trainer.record.recorder import code_digests, device_name
from trainyard_trainer.record.statement import Statement, StepFigures, VerificationFailed, read_statement
from trainyard_trainer.replay.replay import Replay, Report, checkpoint_at, replay_of
from trainyard_trainer.replay.saved_run import ReplayError, SavedRun
from trainyard_trainer.replay.verify import Say
from trainyard_trainer.runtime.object_store import Location

TOLERANCE = 1e-5
"""Relative difference up to which another layout or another machine gives the same numbers in float32."""
HALF_TOLERANCE = 2e-2
"""The same in bfloat16, which has 8 bits of precision."""


def verify_steps(path: Location, first: int, last: int, say: Say, *, report: Report = lambda *_: None) -> None:
    """Compute the steps behind a checkpoint again, in this process, and compare figures and tensors.

    It begins again from each checkpoint in between, with the configuration of the attempt that continued from there. In
    the same environment, with a run of one process on a processor, all has to be equal bit by bit, and elsewhere up to
    rounding.

    Args:
        path: folder of the run.
        first: step of a checkpoint, or 0 for the initial values; the first step that is computed is the next one.
        last: last step that is computed; if there is a checkpoint of it, its tensors are compared.
        say: receives what was checked.
        report: receives the progress.

    Raises:
        VerificationFailed: figures or tensors differ, or the data are others.
        ReplayError: there is no checkpoint of the first step, or nothing to compare with.
        RecordError: a record cannot be read.
        ConfigError: the data of the run is missing.
    """
    if last <= first:
        raise ReplayError(f"--steps {first}..{last}: the second step must be after the first")
    run = SavedRun.open(path)
    if first:
        checkpoint_at(run, first)
    folders = [catalog.complete_folder(run.root, step) for step in run.steps if step > first]
    statements = [statement for folder in folders if (statement := read_statement(folder)) is not None]
    reports = {figures.step: figures for statement in statements for figures in statement.predicate.reports}
    due = [step for step in range(first + 1, last + 1) if step in reports]
    saved = [step for step in run.steps if first < step <= last]
    if not due and last not in saved:
        raise ReplayError(
            f"there is nothing to compare the steps {first + 1} to {last} with: none was reported, and there is no "
            f"checkpoint of step {last}; choose steps up to a checkpoint, there are {', '.join(map(str, run.steps))}"
        )
    check = _Comparison()
    for begin, end in pairwise(sorted({first, *saved, last})):
        following = next((s for s in statements if s.predicate.step >= end), None)
        if following is not None:
            torch.set_num_threads(following.predicate.environment.threads)
        with replay_of(run, begin + 1) as replay:
            check.exact = following is not None and _same_environment(replay, following, run)
            check.tolerance = HALF_TOLERANCE if replay.config.precision == "bfloat16" else TOLERANCE
            for outcome in replay.trainer.make_steps(end):
                # What made a step bad may have been a faulty device, which is not here.
                if outcome.step in reports and outcome.step not in replay.skipped:
                    check.figures(reports[outcome.step], outcome.loss.item(), outcome.norm.item())
                report("steps", outcome.step - first, last - first)
            if end in saved:
                _compare_tensors(replay, catalog.complete_folder(run.root, end), check)
    where = "the same layout and machine" if check.exact else "one process, the run had another layout or machine"
    tensors = f" and all tensors of {_named(saved)}" if saved else ""
    compared = f"{plural(len(due), 'report')}{tensors}"
    say(f"steps: {first + 1} to {last} computed again ({where}): {compared}, {check.summary()}")


def _named(steps: list[int]) -> str:
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


class _Comparison:
    """Compares numbers with those of the run, and keeps the largest difference."""

    def __init__(self) -> None:
        self.exact = False
        """Whether numbers must be equal bit by bit."""
        self.tolerance = TOLERANCE
        """Relative difference that is allowed otherwise."""
        self._largest = 0.0

    def figures(self, recorded: StepFigures, loss: float, norm: float) -> None:
        """Compare loss and gradient norm of a step."""
        for name, found, expected in (("loss", loss, recorded.loss), ("gradient norm", norm, recorded.grad_norm)):
            if expected is None or not math.isfinite(found):
                error = 0.0 if expected is None and not math.isfinite(found) else math.inf
            else:
                error = abs(found - expected) / max(abs(expected), 1e-30)
            self._check(error, f"the {name} of step {recorded.step} is {found:.9g}, but {expected} in the record")

    def tensor(self, name: str, found: Tensor, expected: Tensor, step: int) -> None:
        """Compare a tensor with that of a checkpoint."""
        difference = (found.double() - expected.double()).norm().item()
        error = difference / max(expected.double().norm().item(), 1e-30) if difference else 0.0
        self._check(error, f"the tensor {name} of step {step} differs from the checkpoint by {error:.1e}")

    def summary(self) -> str:
        """Return how far the numbers were from those of the run."""
        return "equal bit by bit" if self._largest == 0 else f"equal up to {self._largest:.0e}"

    def _check(self, error: float, problem: str) -> None:
        self._largest = max(self._largest, error)
        # NaN is no difference that a tolerance allows.
        if not error <= (0.0 if self.exact else self.tolerance):
            allowed = "bit by bit" if self.exact else f"up to {self.tolerance:.0e}"
            raise VerificationFailed(f"{problem}; it has to be equal {allowed}")


def _compare_tensors(replay: Replay, folder: Location, check: _Comparison) -> None:
    state = replay.trainer.state
    found, manifest = state.snapshot()
    saved = Manifest.read(folder)
    if (manifest.samples, manifest.tokens_consumed) != (saved.samples, saved.tokens_consumed):
        raise VerificationFailed(f"{folder} has consumed {saved.samples} samples, but its steps {manifest.samples}")
    expected = {name: torch.empty_like(tensor) for name, tensor in found.items()}
    load(folder, expected, dist.group.WORLD)
    for name, tensor in found.items():
        check.tensor(name, _local(tensor), _local(expected[name]), saved.step)


def _same_environment(replay: Replay, statement: Statement, run: SavedRun) -> bool:
    """Return whether this process computes what the run has computed in the same order: bit by bit the same."""
    predicate, device = statement.predicate, replay.trainer.world.device
    return (
        device.type == "cpu"
        and run.config_of(replay.trainer.step + 1) == replay.config
        and predicate.environment.device == device_name(device)
        and predicate.environment.threads == torch.get_num_threads()
        and predicate.run.versions["torch"] == torch.__version__
        and predicate.code == code_digests(replay.config)
    )


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
