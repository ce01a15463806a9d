"""What a record says about a run, and that `trainyard verify` refuses what is not as recorded."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.trainer.layouts import FSDP, Layout, pipe
from tests.trainer.pods import Starter, finish
from tests.trainer.test_explain_step import Saved, configure, train
from trainyard.protocol import constants
from trainyard.resource.health import BadStepPolicy
from trainyard_trainer.record.signing import load_public_key, load_signer, sign_record, verify_signatures
from trainyard_trainer.record.statement import (
    RECORD_FILE,
    RecordError,
    Statement,
    VerificationFailed,
    read_statement,
    records_of,
)
from trainyard_trainer.replay.saved_run import ReplayError
from trainyard_trainer.replay.verify import verify_config, verify_data, verify_files, verify_history
from trainyard_trainer.replay.verify_steps import verify_steps
from trainyard_trainer.weights.export import Export
from trainyard_trainer.weights.folder import open_weights


class Keys:
    """A pair of keys in PEM files."""

    def __init__(self, folder: Path) -> None:
        key = Ed25519PrivateKey.generate()
        self.private, self.public = folder / "private.pem", folder / "public.pem"
        self.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signed(start: Starter, tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Saved:
    """A run of two attempts on one process, whose records are signed."""
    folder = tmp_path_factory.mktemp("signed")
    ids = np.random.default_rng(1).integers(0, 256, 16 * 200 + 1)
    ids.astype(np.uint16).tofile(folder / "tokens.bin")
    settings: dict[str, Any] = {"signingKeyFile": str(keys.private), "optimizer": {"eps": 1e-4}}
    for steps in (8, 12):
        config = configure(Layout(1, {}), folder / "tokens.bin", steps, **settings)
        found = train(start, folder / "checkpoints", Layout(1, {}), config)
    return found


@pytest.fixture
def copied(signed: Saved, tmp_path: Path) -> Path:
    """A copy of the run, to be tampered with; its data stay where they are."""
    shutil.copytree(signed.folder, tmp_path / "copy")
    return tmp_path / "copy"


def check(path: Path, key: Path | None = None) -> list[str]:
    """Check what `trainyard verify` always checks, and return its lines."""
    lines: list[str] = []
    records = records_of(path)
    verify_files(records, lines.append)
    verify_signatures(records, key, lines.append)
    verify_history(records, lines.append)
    return lines


def test_a_record_says_how_a_checkpoint_came_to_be(signed: Saved, keys: Keys) -> None:
    records = records_of(signed.folder)
    assert [record.predicate.step for record in records] == [4, 8, 12]
    newest = records[-1].predicate
    assert [(a.number, a.step) for a in newest.run.attempts] == [(3, 0), (3, 8)]
    assert [(c.step, c.field) for c in newest.run.changes] == [(8, "spec.trainer.stop.steps")]
    assert [digest.step for digest in newest.checkpoints] == [4, 8]
    assert newest.run.config["trainer"]["seed"] == 0
    assert (newest.samples, newest.tokens) == (12 * 32, 12 * 32 * 16)
    assert newest.phases[0].samples_at(12) == newest.samples
    assert set(newest.code) == {"trainyard", "trainyard_trainer"}
    reported = {r["step"]: r["loss"] for r in signed.pod.reports}
    assert {f.step: f.loss for f in newest.reports} == pytest.approx(
        {s: reported[s] for s in (9, 10, 11, 12)}, abs=1e-6
    )
    assert newest.reported_after == 8
    assert newest.progress is not None
    assert newest.progress.loss == pytest.approx(reported[12], abs=1e-6)
    assert records[-1].key_ids == (load_public_key(keys.public, "--key").keyid,)
    # The envelope is what other tools for in-toto read.
    envelope = json.loads((signed.folder / "step-00000012" / RECORD_FILE).read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {"name", "digest"} == set(statement["subject"][0])


def test_a_run_as_it_was_written_is_verified(signed: Saved, keys: Keys) -> None:
    lines = check(signed.folder, keys.public)
    assert lines[-2].startswith("signature: 3 of 3 records are signed with the key ")
    assert lines[-1] == "history: 2 attempts, 3 checkpoints"
    assert "signature: not checked, there is no --key" in check(signed.folder)


@pytest.mark.parametrize(("first", "last", "saved"), [(0, 4, "step 4"), (4, 12, "steps 8, 12"), (8, 10, "")])
def test_steps_that_are_computed_again_are_equal_bit_by_bit(signed: Saved, first: int, last: int, saved: str) -> None:
    """From the initial values, over two attempts with other learning rates, and between two checkpoints."""
    lines: list[str] = []
    verify_steps(signed.folder, first, last, lines.append)
    (line,) = lines
    tensors = f" and all tensors of {saved}" if saved else ""
    assert line == (
        f"steps: {first + 1} to {last} computed again (the same layout and machine): {last - first} reports{tensors}, "
        "equal bit by bit"
    )


LAYOUTS = [Layout(2, {"data": FSDP}), Layout(2, {"pipeline": pipe(2)})]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_steps_of_another_layout_are_equal_to_rounding(
    start: Starter, signed: Saved, tmp_path: Path, layout: Layout
) -> None:
    config = configure(layout, signed.folder.parent / "tokens.bin", 8, optimizer={"eps": 1e-4})
    train(start, tmp_path / "run", layout, config)
    lines: list[str] = []
    verify_steps(tmp_path / "run", 4, 8, lines.append)
    assert "computed again (one process, the run had another layout or machine): 4 reports" in lines[0]
    check(tmp_path / "run")


@pytest.mark.parametrize(
    ("fault", "action", "checkpoints"),
    [("nan_at_samples_32_to_55", "Rollback", (4, 8)), ("nan_at_samples_24", "Skip", (5, 8))],
)
def test_a_run_that_has_skipped_steps_or_rolled_back_is_replayed_as_it_was(
    start: Starter, tmp_path: Path, fault: str, action: str, checkpoints: tuple[int, int]
) -> None:
    """The fault of a device is not there in the replay, but what followed from it is."""
    np.random.default_rng(2).integers(0, 256, 16 * 200 + 1).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    batch = {"global": 8, "micro": 4}
    config = configure(Layout(2, {"data": FSDP}), tmp_path / "tokens.bin", 8, batch=batch, optimizer={"eps": 1e-4})
    policy = BadStepPolicy.model_validate({"action": action, "limit": 3})
    config = config.replace(health=config.health.replace(bad_steps=policy))
    run = train(start, tmp_path / "run", Layout(2, {"data": FSDP}), config, f"tests.trainer.faults:{fault}").folder
    assert tuple(record.predicate.step for record in records_of(run)) == checkpoints
    verify_steps(run, 0, 8, print)
    check(run)


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, changes: Callable[[Any], None]) -> None:
    """Change a file of JSON."""
    content = json.loads(path.read_text())
    changes(content)
    path.write_text(json.dumps(content))


def rewrite(folder: Path, changes: Callable[[Any], None], *, keep: bool = True) -> None:
    """Change the statement of a record, and keep its signatures, or remove them."""

    def inside(envelope: Any) -> None:
        statement = json.loads(base64.b64decode(envelope["payload"]))
        changes(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        envelope["signatures"] = envelope["signatures"] if keep else []

    edit(folder / RECORD_FILE, inside)


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (lambda run: change(run / "step-00000008" / "__0_0.distcp"), "another SHA-256 than in its record"),
    "index": (lambda run: change(run / "step-00000012" / ".metadata"), "another SHA-256 than in its record"),
    "manifest": (
        lambda run: edit(run / "step-00000012" / "manifest.json", lambda m: m.update(samples=7)),
        "manifest.json has another SHA-256",
    ),
    "missing file": (lambda run: (run / "step-00000012" / ".metadata").unlink(), ".metadata is missing"),
    "added file": (lambda run: (run / "step-00000012" / "x.pkl").touch(), "x.pkl is not in the record of"),
    "configuration": (
        lambda run: edit(run / "run.json", lambda r: r["config"]["trainer"].update(seed=9)),
        "run.json: config.trainer.seed is 9, but 0 in the record of",
    ),
    "data in run.json": (
        lambda run: edit(run / "run.json", lambda r: r["data"].update(fingerprint=9)),
        "run.json: data.fingerprint is 9, but",
    ),
    "record": (
        lambda run: rewrite(run / "step-00000012", lambda s: s["predicate"]["run"].update(image="x")),
        "has no valid signature of this key: it was changed after it was signed",
    ),
    "losses": (
        lambda run: rewrite(run / "step-00000012", lambda s: s["predicate"]["reports"][0].update(loss=1.0)),
        "it was changed after it was signed",
    ),
    "removed signature": (
        lambda run: rewrite(run / "step-00000012", lambda s: s["predicate"].update(step=12), keep=False),
        "has no signature",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_refused(copied: Path, keys: Keys, what: str) -> None:
    tamper, message = TAMPERED[what]
    tamper(copied)
    with pytest.raises(VerificationFailed) as error:
        check(copied, keys.public)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_record_of_another_model_is_refused(copied: Path, signed: Saved, start: Starter, tmp_path: Path) -> None:
    """Somebody has put a checkpoint, with a record that fits to it, in the place of another."""
    config = configure(Layout(1, {}), signed.folder.parent / "tokens.bin", 8, seed=3)
    other = train(start, tmp_path / "other", Layout(1, {}), config).folder
    shutil.rmtree(copied / "step-00000008")
    shutil.copytree(other / "step-00000008", copied / "step-00000008")
    with pytest.raises(VerificationFailed, match="is of another run than that of"):
        check(copied)


def forge(run: Path) -> None:
    """Change a loss in an unsigned record."""
    rewrite(run / "step-00000012", lambda s: s["predicate"]["reports"][1].update(loss=4.0), keep=False)


def poison(run: Path) -> None:
    """Train with another seed than the record says, which only the steps show."""
    for step in (8, 12):
        rewrite(
            run / f"step-{step:08}",
            lambda s: s["predicate"]["run"]["config"]["trainer"]["optimizer"].update(learningRate=0.02),
            keep=False,
        )


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (forge, "the loss of step 10 is "),
        (poison, "the gradient norm of step 10 is |the loss of step 10 is "),
    ],
)
def test_what_only_the_steps_show_is_refused(copied: Path, tamper: Callable[[Path], None], message: str) -> None:
    tamper(copied)
    with pytest.raises(VerificationFailed, match=message):
        verify_steps(copied, 8, 12, print)


def test_weights_that_no_step_has_made_are_refused(copied: Path) -> None:
    """Weights of another step with a record to match: only the steps show it."""
    manifest = json.loads((copied / "step-00000012" / "manifest.json").read_text())
    for name in manifest["files"]:
        shutil.copy(copied / "step-00000008" / name, copied / "step-00000012" / name)
    manifest["files"] = json.loads((copied / "step-00000008" / "manifest.json").read_text())["files"]
    (copied / "step-00000012" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationFailed, match=r"the tensor model\..* of step 12 differs from the checkpoint by"):
        verify_steps(copied, 8, 12, print)


def test_data_that_were_tampered_with_are_refused(copied: Path, signed: Saved) -> None:
    lines: list[str] = []
    verify_data(copied, lines.append)
    assert lines[0].startswith("data: the fingerprint of 3,201 tokens in windows of 16 is that of the record")
    path = signed.folder.parent / "tokens.bin"
    before = path.read_bytes()
    try:
        change(path)
        message = r"the data has the fingerprint .* but the run was trained on"
        with pytest.raises(VerificationFailed, match=message):
            verify_data(copied, print)
        with pytest.raises(VerificationFailed, match=message):
            verify_steps(copied, 4, 8, print)
    finally:
        path.write_bytes(before)


def test_the_manifest_of_another_job_is_refused(signed: Saved) -> None:
    records = records_of(signed.folder)
    settings: dict[str, Any] = {"signingKeyFile": records[-1].predicate.run.config["trainer"]["signingKeyFile"]}
    path = signed.folder.parent / "tokens.bin"
    verify_config(records, configure(Layout(1, {}), path, 12, optimizer={"eps": 1e-4}, **settings), print)
    with pytest.raises(
        VerificationFailed, match=r"spec\.trainer\.optimizer\.eps is 0\.001 in the manifest, but 0\.0001"
    ):
        verify_config(records, configure(Layout(1, {}), path, 12, optimizer={"eps": 1e-3}, **settings), print)


def test_an_export_has_the_record_of_its_checkpoint(signed: Saved, tmp_path: Path, keys: Keys) -> None:
    folder = tmp_path / "export"
    job = Export(open_weights(signed.folder), folder, key=keys.private)
    job.begin()
    job.write_shards()
    job.commit()
    check(folder, keys.public)
    statement = read_statement(folder)
    assert statement is not None
    assert {"config.json", "model.safetensors", "run.json"} <= set(statement.subjects)
    assert statement.predicate.source is not None
    assert statement.predicate.source.step == 12
    change(folder / "model.safetensors")
    with pytest.raises(VerificationFailed, match="another SHA-256"):
        check(folder)


def test_a_record_can_be_signed_later_and_by_several_keys(copied: Path, keys: Keys, tmp_path: Path) -> None:
    other = Keys(tmp_path)
    with pytest.raises(VerificationFailed, match="it was signed with others"):
        check(copied, other.public)
    statements: list[Statement] = [sign_record(s, other.private, "--sign") for s in records_of(copied)]
    assert len(statements[-1].key_ids) == 2
    check(copied, other.public)
    check(copied, keys.public)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not a record of Trainyard"),
        (b'{"payload": "e30=", "payloadType": "x", "signatures": []}', "is not a record of Trainyard"),
        (b"\xff", "is not a record of Trainyard"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_message(copied: Path, content: bytes, words: str) -> None:
    (copied / "step-00000012" / RECORD_FILE).write_bytes(content)
    with pytest.raises(RecordError, match=words) as error:
        records_of(copied)
    assert "\n" not in str(error.value)


def test_a_missing_record_and_impossible_steps_are_one_message(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"{tmp_path} has no {RECORD_FILE}; name a checkpoint, an export, or a run"):
        records_of(tmp_path)
    for steps, words in (((5, 8), "has no checkpoint of step 5; there are 4, 8, 12"), ((8, 8), "must be after")):
        with pytest.raises(ReplayError, match=words):
            verify_steps(copied, *steps, print)
    with pytest.raises(ReplayError, match="there is nothing to compare the steps 13 to 14 with"):
        verify_steps(copied, 12, 14, print)
    (copied / "step-00000008" / RECORD_FILE).unlink()
    with pytest.raises(RecordError, match=f"step-00000008 has no {RECORD_FILE}, as the other checkpoints have"):
        records_of(copied)


@pytest.mark.parametrize("text", ["", "no key"])
def test_a_wrong_key_is_one_message(start: Starter, tmp_path: Path, text: str) -> None:
    key = tmp_path / "key.pem"
    key.write_text(text)
    for load in (load_signer, load_public_key):
        with pytest.raises(RecordError, match=f"--key: {key} is not a p"):
            load(key, "--key")
    if not text:
        return
    data = tmp_path / "tokens.bin"
    np.zeros(16 * 40 + 1, np.uint16).tofile(data)
    config = configure(Layout(1, {}), data, 4, signingKeyFile=str(key))
    (pod,) = start(config, 1, 1, env={constants.ENV_CHECKPOINTS: str(tmp_path / "saved")})
    assert finish([pod], 60) == [constants.EXIT_INVALID_CONFIG], pod.stderr
    assert pod.word is not None
    assert pod.word.message.startswith(f"spec.trainer.signingKeyFile: {key} is not a private key in PEM format")
    assert "Traceback" not in pod.stderr
