"""Checks that weights are what their record says: their files, their history, and the data of the run."""

from collections.abc import Callable
from tempfile import TemporaryDirectory

from trainyard.config import RunConfig
from trainyard.resume import leaves
from trainyard.run_record import RUN_FILE, compare_config
from trainyard.text import plural
from trainyard_trainer.checkpoint.manifest import MANIFEST, Manifest
from trainyard_trainer.plugin import load_plugin
from trainyard_trainer.record.statement import (
    Statement,
    VerificationFailed,
    file_digest,
    files_below,
)
from trainyard_trainer.replay.replay import read_samples
from trainyard_trainer.replay.saved_run import SavedRun, in_one_process
from trainyard_trainer.runtime.object_store import Location

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
    attempts, checkpoints = len(newest.predicate.run.attempts), len(known) + 1
    say(f"history: {plural(attempts, 'attempt')}, {plural(checkpoints, 'checkpoint')}")


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


def verify_data(path: Location, say: Say) -> None:
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


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
