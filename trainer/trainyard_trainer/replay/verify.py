"""Checks that weights are what their record says: files, signature, data, and steps that are computed again."""

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainyard.config import RunConfig
from trainyard.resume import leaves
from trainyard.run_record import RUN_FILE, compare_config
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import MANIFEST, Manifest
from trainyard_trainer.checkpoint.storage import load
from trainyard_trainer.plugin import load_plugin
from trainyard_trainer.record.recorder import code_digests, device_name
from trainyard_trainer.record.statement import (
    Statement,
    StepFigures,
    VerificationFailed,
    file_digest,
    files_below,
    read_statement,
)
from trainyard_trainer.replay.replay import Replay, Report, checkpoint_at, read_samples, replay_of
from trainyard_trainer.replay.saved_run import ReplayError, SavedRun, in_one_process

TOLERANCE = 1e-5
"""Relative difference up to which another layout or another machine gives the same figures in float32."""
HALF_TOLERANCE = 2e-2
"""The same in bfloat16, which has 8 bits of precision."""
Say = Callable[[str], None]
"""Receives a line for each thing that was checked."""


def verify_files(statements: list[Statement], say: Say) -> None:
    """Check that each folder holds the files of its record, and nothing else.

    Raises:
        VerificationFailed: it does not.
    """
    for statement in statements:
        folder, expected = statement.folder, statement.subjects
        found = set(files_below(folder))
        for name in sorted(found | set(expected)):
            if name not in found:
                raise VerificationFailed(f"{folder / name} is missing")
            if name not in expected:
                raise VerificationFailed(f"{folder / name} is not in the record of {folder}")
            if file_digest(folder / name) != expected[name]:
                raise VerificationFailed(f"{folder / name} has another SHA-256 than in its record: it was changed")
        say(f"files: {len(expected)} of {folder.name} have the digests of the record")


def verify_history(statements: list[Statement], say: Say) -> None:
    """Check that records of one run agree with each other, with the manifests of the checkpoints, and with run.json.

    Raises:
        VerificationFailed: they do not.
    """
    newest = statements[-1]
    known = {digest.step: digest for digest in newest.predicate.checkpoints if digest.run == newest.predicate.run.id}
    for statement in statements:
        predicate, folder = statement.predicate, statement.folder
        if predicate.run.id != newest.predicate.run.id:
            raise VerificationFailed(f"the record of {folder} is of another run than that of {newest.folder}")
        manifest = folder / MANIFEST
        if predicate.source is not None or not manifest.exists():
            continue
        _check_manifest(statement, Manifest.read(folder))
        if predicate.step in known and known[predicate.step].sha256 != file_digest(manifest):
            raise VerificationFailed(f"{manifest} is not the one that the record of {newest.folder} names")
    _check_run_file(newest)
    say(f"history: {len(newest.predicate.run.attempts)} attempts, {len(known) + 1} checkpoints")


def _check_manifest(statement: Statement, manifest: Manifest) -> None:
    predicate = statement.predicate
    pairs = {
        "run": (manifest.run, predicate.run.id),
        "step": (manifest.step, predicate.step),
        "samples": (manifest.samples, predicate.samples),
        "tokens": (manifest.tokens_consumed, predicate.tokens),
        "data": (manifest.data, predicate.run.data.fingerprint),
        "phases": (manifest.history, predicate.phases),
        "progress": (manifest.progress, predicate.progress),
    }
    for name, (found, recorded) in pairs.items():
        if found != recorded:
            raise VerificationFailed(
                f"{statement.folder}: {name} is {_short(found)} in {MANIFEST}, but {_short(recorded)} in the record"
            )


def _check_run_file(newest: Statement) -> None:
    """Check run.json, which is written before the first checkpoint of an attempt, and is not in any record."""
    folder, recorded = newest.folder.parent, newest.predicate.run
    if newest.predicate.source is not None or not (folder / RUN_FILE).exists():
        return
    run = SavedRun.open(newest.folder).record
    begun = run.attempts[: len(recorded.attempts)]
    # A later attempt may have written it, and no checkpoint since: its configuration may differ.
    if len(run.attempts) > len(recorded.attempts):
        recorded = run.replace(id=recorded.id, created=recorded.created, parent=recorded.parent, attempts=begun)
        run = run.replace(attempts=begun)
    before, after = leaves(recorded.to_dict()), leaves(run.to_dict())
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            raise VerificationFailed(
                f"{folder / RUN_FILE}: {name} is {_short(after.get(name))}, but {_short(before.get(name))} in the "
                f"record of {newest.folder}"
            )


def verify_config(statements: list[Statement], config: RunConfig, say: Say) -> None:
    """Check that the newest record is of a run with this configuration.

    Raises:
        VerificationFailed: it is of another; the message names the first field that differs.
    """
    newest = statements[-1]
    for difference in compare_config(newest.predicate.run, config):
        raise VerificationFailed(
            f"{difference.field} is {_short(difference.after)} in the manifest, but {_short(difference.before)} in the "
            f"record of {newest.folder}"
        )
    say("manifest: its configuration is that of the record")


def verify_data(path: Path, say: Say) -> None:
    """Check that the data are those of the run; documents are tokenized again, since a cache may have been changed.

    Raises:
        VerificationFailed: they are others.
        ReplayError: there is no record of the run.
        ConfigError: the data is missing.
    """
    run = SavedRun.open(path)
    config = in_one_process(run.config_of(max(run.steps, default=1)))
    with TemporaryDirectory(prefix="trainyard-") as folder:
        data = config.trainer.data.replace(cache=folder)
        config = config.replace(trainer=config.trainer.replace(data=data))
        samples = read_samples(run, config, load_plugin(config))
        say(f"data: the fingerprint of {samples} is that of the record")


def verify_steps(path: Path, first: int, last: int, say: Say, *, report: Report = lambda *_: None) -> None:
    """Compute the steps behind a checkpoint again, in this process, and compare figures and tensors.

    In the same environment, with a run of one process on a processor, they have to be equal bit by bit, and elsewhere
    up to rounding.

    Args:
        path: folder of the run.
        first: step of a checkpoint; the first step that is computed is the next one.
        last: last step that is computed; if there is a checkpoint of it, its tensors are compared.
        say: receives what was checked.
        report: receives the progress.

    Raises:
        VerificationFailed: figures or tensors differ.
        ReplayError: there is no checkpoint of the first step, or nothing to compare with.
        RecordError: a record cannot be read.
        ConfigError: the data of the run is missing.
    """
    if last <= first:
        raise ReplayError(f"--steps {first}..{last}: the second step must be after the first")
    run = SavedRun.open(path)
    source = checkpoint_at(run, first) if first else None
    statements = [
        s for step in run.steps if step > first and (s := read_statement(catalog.complete_folder(run.root, step)))
    ]
    reports = {figures.step: figures for statement in statements for figures in statement.predicate.reports}
    due = [step for step in range(first + 1, last + 1) if step in reports]
    if not due and last not in run.steps:
        raise ReplayError(
            f"there is nothing to compare the steps {first + 1} to {last} with: none was reported, and there is no "
            f"checkpoint of step {last}; choose steps up to a checkpoint, there are {', '.join(map(str, run.steps))}"
        )
    if statements:
        torch.set_num_threads(statements[0].predicate.environment.threads)
    with replay_of(run, first + 1) as replay:
        assert source is None or replay.trainer.step == first
        exact = bool(statements) and _same_environment(replay, statements[0], run)
        check = _Comparison(exact, HALF_TOLERANCE if replay.config.precision == "bfloat16" else TOLERANCE)
        for outcome in replay.trainer.make_steps(last):
            if outcome.step in reports:
                check.figures(reports[outcome.step], outcome.loss.item(), outcome.norm.item())
            report("steps", outcome.step - first, last - first)
        if last in run.steps:
            _compare_tensors(replay, catalog.complete_folder(run.root, last), check)
    where = "the same layout and machine" if exact else "one process, the run had another layout or machine"
    say(
        f"steps: {first + 1} to {last} computed again ({where}): {len(due)} reports"
        + (f" and all tensors of step {last}" if last in run.steps else "")
        + f" are {check.summary()}"
    )


class _Comparison:
    """Compares numbers with those of the run, and keeps the largest difference."""

    def __init__(self, exact: bool, tolerance: float) -> None:
        self._exact, self._tolerance = exact, tolerance
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
        if not error <= (0.0 if self._exact else self._tolerance):
            allowed = "bit by bit" if self._exact else f"up to {self._tolerance:.0e}"
            raise VerificationFailed(f"{problem}; it has to be equal {allowed}")


def _compare_tensors(replay: Replay, folder: Path, check: _Comparison) -> None:
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


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
