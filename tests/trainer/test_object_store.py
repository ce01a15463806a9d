"""Runs whose checkpoints and data are in an object store, with the store's failures. The store is a real S3 server."""

import gzip
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.object_store import ObjectStore
from tests.support.run_config import make_config
from tests.trainer.layouts import TOLERANCE
from tests.trainer.pods import ENTRY, Pod, Starter, wait_until
from trainyard.protocol import constants
from trainyard.resource.datasets import DataSource
from trainyard.run_record import RUN_FILE, RunRecord
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import MANIFEST, Manifest
from trainyard_trainer.data import downloads
from trainyard_trainer.data.documents import open_documents
from trainyard_trainer.data.files import find_files
from trainyard_trainer.data.token_set import open_tokens
from trainyard_trainer.record.statement import RECORD_FILE
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import (
    ObjectPath,
    ObjectStoreRefused,
    ObjectStoreUnavailable,
)
from trainyard_trainer.weights.export import Export, export
from trainyard_trainer.weights.folder import WeightsError, load_model, open_weights

FIELD = "spec.trainer.data.path"
FSDP = {"data": {"mode": "fsdp"}}
SHORT_GRACE = {constants.ENV_GRACE: "8"}
"""Seconds, of which 5 are for saving the last step again and again."""


def train(
    start: Starter,
    store: ObjectStore,
    root: ObjectPath,
    world: int = 1,
    parallelism: dict[str, Any] | None = None,
    *,
    procs: int = 1,
    entry: str = ENTRY,
    env: dict[str, str] | None = None,
    **trainer: Any,
) -> list[Pod]:
    checkpoint = {"everySteps": 2, "async": False, **trainer.pop("checkpoint", {})}
    # Adam would amplify the rounding of the smallest gradients.
    trainer = {"optimizer": {"name": "sgd", "momentum": 0.9}, "schedule": {"name": "constant"}, **trainer}
    config = make_config(world, parallelism, checkpoint=checkpoint, **trainer)
    variables = {**store.environment, constants.ENV_CHECKPOINT_URL: str(root), **SHORT_GRACE, **(env or {})}
    return start(config, world // procs, procs, entry, variables)


def losses(pod: Pod) -> dict[int, float]:
    return {report["step"]: report["loss"] for report in pod.reports if "loss" in report}


def names(root: ObjectPath) -> list[str]:
    return [str(path).removeprefix(f"{root}/") for path in root.files()]


# --- paths ---------------------------------------------------------------------------------------------------------


def test_an_object_has_the_interface_of_a_path(bucket: ObjectPath) -> None:
    path = bucket / "folder" / "name.json"
    assert (path.name, path.parent.name, path.with_suffix(".idx").name) == ("name.json", "folder", "name.idx")
    assert not path.exists()
    assert not path.parent.is_dir()
    assert list(bucket.iterdir()) == []
    path.write_bytes(b"first")
    path.write_bytes(b"second")
    assert path.read_text() == "second"
    assert (path.is_file(), path.parent.is_dir(), path.stat().st_size) == (True, True, 6)
    assert abs(path.stat().st_mtime_ns / 1e9 - time.time()) < 60
    with path.open("rb") as file:
        assert (file.read(3), file.tell(), file.seek(-2, os.SEEK_END)) == (b"sec", 3, 4)
        assert (file.read(), file.read()) == (b"nd", b"")
    (bucket / "folder" / "sub" / "a").write_bytes(b"")
    assert [entry.name for entry in (bucket / "folder").iterdir()] == ["name.json", "sub"]
    assert names(bucket) == ["folder/name.json", "folder/sub/a"]
    path.rename(bucket / "folder" / "other")
    assert names(bucket) == ["folder/other", "folder/sub/a"]
    (bucket / "folder").remove_folder()
    (bucket / "folder").remove_folder()
    assert not (bucket / "folder").exists()
    with pytest.raises(FileNotFoundError):
        path.stat()
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    with pytest.raises(FileNotFoundError):
        path.unlink()
    path.unlink(missing_ok=True)


def test_what_the_store_answers_is_told_apart(store: ObjectStore, bucket: ObjectPath) -> None:
    """No repetition changes that there is no bucket; a store that is down may come back."""
    with pytest.raises(ObjectStoreRefused, match="NO_SUCH_BUCKET"):
        (ObjectPath("s3://none-such-bucket") / "a").write_bytes(b"")
    store.proxy.go_down()
    with pytest.raises(ObjectStoreUnavailable, match="NETWORK_CONNECTION"):
        (bucket / "a").write_bytes(b"")
    with pytest.raises(ObjectStoreUnavailable):
        list(bucket.iterdir())
    store.proxy.come_back()
    assert list(bucket.iterdir()) == []


# --- the catalog -----------------------------------------------------------------------------------------------------


def write_step(root: ObjectPath, step: int, *, complete: bool = True) -> None:
    folder = catalog.partial_folder(root, step)
    (folder / "a").write_bytes(b"content" * step)
    if complete:
        files = {"a": catalog.file_checksum(folder / "a")}
        manifest = Manifest(step=step, samples=step, model={}, optimizer="sgd", data=1, files=files)
        catalog.commit(folder, manifest)


def test_a_manifest_makes_a_checkpoint_complete(bucket: ObjectPath) -> None:
    root = bucket / "job"
    assert catalog.complete_steps(root) == []
    for step in (1, 2, 3):
        write_step(root, step)
    write_step(root, 4, complete=False)
    assert catalog.complete_steps(root) == [3, 2, 1]
    assert catalog.find_damage(catalog.complete_folder(root, 3)) is None
    assert catalog.size(catalog.complete_folder(root, 3)) == 21
    catalog.remove_partial(root)
    assert not (root / "step-00000004").exists()
    catalog.remove_old(root, keep=2)
    assert names(root) == [f"step-0000000{step}/{name}" for step in (2, 3) for name in ("a", MANIFEST)]
    catalog.begin(catalog.partial_folder(root, 3))
    assert catalog.complete_steps(root) == [2], "it is written again"


def test_files_that_are_missing_are_not_committed(bucket: ObjectPath) -> None:
    write_step(bucket, 1)
    manifest = Manifest.read(bucket / "step-00000001")
    (bucket / "step-00000002" / "a").write_bytes(b"short")
    with pytest.raises(OSError, match="a has 5 bytes instead of 7 where rank 0 looks for it"):
        catalog.commit(bucket / "step-00000002", manifest)
    with pytest.raises(OSError, match="a is missing where rank 0 looks for it"):
        catalog.commit(bucket / "step-00000003", manifest)
    assert catalog.complete_steps(bucket) == [1]


def test_a_store_that_is_down_has_damaged_nothing(store: ObjectStore, bucket: ObjectPath) -> None:
    """Otherwise the run would begin again at step 1, and remove its checkpoints."""
    write_step(bucket, 1)
    store.proxy.go_down()
    with pytest.raises(ObjectStoreUnavailable):
        catalog.find_damage(bucket / "step-00000001")
    with pytest.raises(ObjectStoreUnavailable):
        catalog.complete_steps(bucket)
    catalog.remove_partial(bucket)
    store.proxy.come_back()
    assert catalog.complete_steps(bucket) == [1]


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_saves_in_a_store_and_resumes_on_another_layout(
    start: Starter, store: ObjectStore, bucket: ObjectPath
) -> None:
    """In the background first, by two ranks; then one process reads what both have written."""
    root = bucket / "job"
    [pod] = train(start, store, root, 2, FSDP, procs=2, stop={"steps": 4}, checkpoint={"async": True, "keep": 1})
    assert pod.wait(60) == 0, pod.stderr
    assert catalog.complete_steps(root) == [4]
    folder = root / "step-00000004"
    assert names(folder) == [".metadata", "__0_0.distcp", "__1_0.distcp", MANIFEST, RECORD_FILE]
    assert set(Manifest.read(folder).files) == set(names(folder)) - {MANIFEST, RECORD_FILE}
    record = RunRecord.read(root)
    assert record is not None
    [resumed] = train(start, store, root)
    assert resumed.wait(60) == 0, resumed.stderr
    assert sorted(losses(resumed)) == [5, 6]
    again = RunRecord.read(root)
    assert again is not None
    assert again.id == record.id
    [undisturbed] = train(start, store, bucket / "other")
    assert undisturbed.wait(60) == 0, undisturbed.stderr
    assert losses(pod) | losses(resumed) == pytest.approx(losses(undisturbed), rel=TOLERANCE)


def test_an_outage_in_the_middle_of_a_checkpoint_loses_nothing(
    start: Starter, store: ObjectStore, bucket: ObjectPath
) -> None:
    """The run goes on without that checkpoint, and writes the next one when the store is back."""
    root = bucket / "job"
    [pod] = train(start, store, root, stop={"steps": 100_000}, checkpoint={"everySteps": None, "everySeconds": 1})
    wait_until(lambda: bool(catalog.complete_steps(root)), 60, lambda: pod.stderr)
    store.proxy.fail_after(200_000)  # a checkpoint has about 500 kB
    wait_until(lambda: "could not be written: ObjectStoreUnavailable" in pod.stdout, 60, lambda: pod.stderr)
    store.proxy.come_back()
    before = catalog.complete_steps(root)[0]
    assert catalog.find_damage(catalog.complete_folder(root, before)) is None
    wait_until(lambda: catalog.complete_steps(root)[:1] > [before], 60, lambda: pod.stderr)
    os.kill(pod.pid, signal.SIGTERM)
    assert pod.wait(60) == 128 + signal.SIGTERM, pod.stderr
    newest = catalog.complete_steps(root)[0]
    assert newest == max(losses(pod))
    assert catalog.find_damage(catalog.complete_folder(root, newest)) is None


def test_a_run_whose_last_checkpoint_cannot_be_written_has_not_succeeded(
    start: Starter, store: ObjectStore, bucket: ObjectPath
) -> None:
    root = bucket / "job"
    [pod] = train(start, store, root, stop={"steps": 300}, checkpoint={"everySteps": 100_000})
    pod.wait_for_step(1)
    store.proxy.go_down()
    assert pod.wait(90) == constants.EXIT_FINAL_CHECKPOINT_FAILED, pod.stderr
    assert pod.word is not None
    assert pod.word.message.startswith("the state after step 300 could not be saved, tried ")
    assert "see that the object store of spec.checkpoint answers" in pod.word.message
    store.proxy.come_back()
    assert catalog.complete_steps(root) == []


def test_a_run_waits_at_its_end_for_a_store_that_comes_back(
    start: Starter, store: ObjectStore, bucket: ObjectPath
) -> None:
    """Checkpoint and record are there then."""
    root = bucket / "job"
    long = {constants.ENV_GRACE: "60"}
    [pod] = train(start, store, root, stop={"steps": 300}, checkpoint={"everySteps": 100_000}, env=long)
    pod.wait_for_step(1)
    store.proxy.go_down()
    wait_until(lambda: "the checkpoint of step 300 could not be written" in pod.stdout, 60, lambda: pod.stderr)
    store.proxy.come_back()
    assert pod.wait(60) == 0, pod.stderr
    assert catalog.complete_steps(root) == [300]


def test_a_store_that_is_down_at_the_start_is_no_error_of_the_configuration(
    start: Starter, store: ObjectStore, bucket: ObjectPath
) -> None:
    """So a restart finds the checkpoints when it is back."""
    root = bucket / "job"
    write_step(root, 3)
    store.proxy.go_down()
    [pod] = train(start, store, root, entry="tests.trainer.storage_faults:impatient")
    assert pod.wait(60) == 1, pod.stderr
    assert pod.word is not None
    assert pod.word.exception == "ObjectStoreUnavailable"
    assert "Traceback" not in pod.stderr
    store.proxy.come_back()
    assert catalog.complete_steps(root) == [3]


def test_a_run_waits_at_its_start_for_a_store_that_comes_back(
    start: Starter, store: ObjectStore, bucket: ObjectPath
) -> None:
    """Restarts are limited, and would be used up in the first minutes of an outage."""
    store.proxy.go_down()
    [pod] = train(start, store, bucket / "job", stop={"steps": 1})
    wait_until(lambda: "the object store does not answer" in pod.stdout, 60, lambda: pod.stderr)
    store.proxy.come_back()
    assert pod.wait(60) == 0, pod.stderr
    assert catalog.complete_steps(bucket / "job") == [1]


def test_a_bucket_that_does_not_exist_is_one_message(start: Starter, store: ObjectStore) -> None:
    [pod] = train(start, store, ObjectPath("s3://none-such-bucket/job"))
    assert pod.wait(60) == constants.EXIT_INVALID_CONFIG, pod.stderr
    assert pod.word is not None
    assert pod.word.message.startswith("spec.checkpoint.url: s3://none-such-bucket/job cannot be used (")
    assert "NO_SUCH_BUCKET" in pod.word.message
    assert pod.word.message.endswith("their permissions to get, put, list and delete objects")
    assert len(pod.stderr.splitlines()) == 1


@pytest.mark.parametrize("known", [True, False], ids=["without permission", "with a wrong key"])
def test_credentials_that_the_store_refuses_are_one_message_without_the_secret(
    start: Starter, store: ObjectStore, bucket: ObjectPath, known: bool
) -> None:
    with store.demanding_credentials() as (key, secret):
        env = {"AWS_ACCESS_KEY_ID": key if known else "AKIANOBODY0000000000", "AWS_SECRET_ACCESS_KEY": secret}
        [pod] = train(start, store, bucket / "job", env=env)
        assert pod.wait(60) == constants.EXIT_INVALID_CONFIG, pod.stderr
    assert pod.word is not None
    assert pod.word.message.startswith(f"spec.checkpoint.url: {bucket}/job cannot be used (")
    assert ("ACCESS_DENIED" if known else "INVALID_ACCESS_KEY_ID") in pod.word.message
    assert len(pod.stderr.splitlines()) == 1
    assert secret not in pod.stdout + pod.stderr + pod.word.encode()


@pytest.fixture
def exported(start: Starter, store: ObjectStore, bucket: ObjectPath) -> ObjectPath:
    """The folder of a run that has exported its weights into the store, by two ranks."""
    [pod] = train(start, store, bucket / "job", 2, FSDP, procs=2, stop={"steps": 2}, export={"dtype": "float32"})
    assert pod.wait(60) == 0, pod.stderr
    return bucket / "job"


def test_weights_are_exported_into_a_store_and_read_from_it(exported: ObjectPath, tmp_path: Path) -> None:
    """The run's own folder and the export hold the same weights; nothing of the export stays on the worker's disk."""
    target = exported / "export"
    assert {"config.json", "generation_config.json", "model.safetensors", "run.json"} <= set(names(target))
    written, saved = load_model(target), load_model(exported)
    assert written.config.to_dict() == saved.config.to_dict()
    for name, parameter in saved.module.named_parameters():
        assert torch.equal(parameter, dict(written.module.named_parameters())[name]), name
    (target / "model-00007-of-00009.safetensors").write_bytes(b"of an earlier export")
    export(open_weights(exported), target, "bfloat16", shard_bytes=20_000)
    assert "model.safetensors" not in names(target)
    assert "model-00007-of-00009.safetensors" not in names(target)
    assert "model.safetensors.index.json" in names(target)
    assert load_model(target).config.to_dict() == saved.config.to_dict()
    assert not list((tmp_path / "cache").rglob("export-*"))


def test_a_run_begins_with_weights_of_a_store(
    start: Starter, store: ObjectStore, exported: ObjectPath, bucket: ObjectPath
) -> None:
    """From an export, and from a checkpoint."""
    first: list[float] = []
    for source in (exported / "export", exported):
        model = {"name": "llama", "from": {"path": str(source)}}
        [pod] = train(start, store, bucket / f"{len(first)}", model=model, replace=True, stop={"steps": 1})
        assert pod.wait(60) == 0, pod.stderr
        first.append(losses(pod)[1])
    assert first[0] == pytest.approx(first[1], rel=TOLERANCE)
    assert first[0] < math.log(256), "random weights know nothing about the next byte"


def test_an_export_that_was_interrupted_is_not_complete(store: ObjectStore, exported: ObjectPath) -> None:
    job = Export(open_weights(exported), exported / "export", "float32", shard_bytes=20_000)
    job.begin()
    store.proxy.fail_after(60_000)
    with pytest.raises(ObjectStoreUnavailable):
        job.write_shards()
    store.proxy.come_back()
    assert len([name for name in names(exported / "export") if name.startswith("model-")]) < job.shards
    with pytest.raises(WeightsError, match="holds no weights"):
        open_weights(exported / "export")


# --- data ------------------------------------------------------------------------------------------------------------


def test_documents_are_read_where_they_are(store: ObjectStore, bucket: ObjectPath) -> None:
    import pyarrow
    from pyarrow import parquet

    text = "".join(f"word{number} " for number in range(20_000))
    lines = "".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(1000)).encode()
    (bucket / "text" / "b.txt").write_bytes(text.encode())
    (bucket / "text" / ".hidden").write_bytes(b"hidden")
    (bucket / "lines" / "a.jsonl").write_bytes(lines)
    (bucket / "lines" / "sub" / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    assert gzip.decompress((bucket / "lines" / "sub" / "b.jsonl.gz").read_bytes()) == lines
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"text": ["one", "two", "three"]}), sink)
    (bucket / "rows" / "a.parquet").write_bytes(sink.getvalue().to_pybytes())

    def read(kind: Any, path: str) -> list[str]:
        documents = open_documents(DataSource(name="data", source=kind, path=path), FIELD)
        assert len(documents.identity()) == len(documents.files())
        found: list[str] = []
        for piece in (piece for part in documents.parts(50_000) for piece in documents.read(part)):
            found = [*found, piece.text] if piece.first else [*found[:-1], found[-1] + piece.text]
        return found

    assert read("text", f"{bucket}/text") == [text]
    assert read("text", f"{bucket}/text/b.txt") == [text]
    assert read("jsonl", f"{bucket}/lines") == [f"line {number}" for number in range(1000)] * 2
    assert read("jsonl", f"{bucket}/**/*.gz") == [f"line {number}" for number in range(1000)]
    assert read("parquet", f"{bucket}/rows/*.parquet") == ["one", "two", "three"]
    with pytest.raises(ConfigError, match=f"{FIELD}: there are no objects at {bucket}/none; correct the URL"):
        find_files(f"{bucket}/none", FIELD)
    with pytest.raises(ConfigError, match=r"holds no files that end with \.bin"):
        find_files(f"{bucket}/text", FIELD, (".bin",))


def test_tokens_are_downloaded_once(store: ObjectStore, bucket: ObjectPath, tmp_path: Path) -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    for name in ("a.bin", "b.bin", "note.txt"):
        (bucket / "tokens" / name).write_bytes(tokens.tobytes())
    source = DataSource(name="data", source="tokens", path=f"{bucket}/tokens")
    found = open_tokens(source, FIELD)
    assert found.count == 2000
    into = np.zeros(1000, np.int64)
    found.read(500, into)
    assert into.tolist() == [*range(500, 1000), *range(500)]
    files = sorted((tmp_path / "cache" / "objects").rglob("*.bin"))
    assert [file.name for file in files] == ["a.bin", "b.bin"]
    store.proxy.fail_after(50_000)
    downloads._downloaded.cache_clear()
    assert open_tokens(source, FIELD).fingerprint == found.fingerprint, "nothing is downloaded again"
    (single,) = open_tokens(source.replace(path=f"{bucket}/tokens/b.bin"), FIELD).files
    assert single.count == 1000


def test_an_outage_in_the_middle_of_a_download_leaves_nothing_half_read(
    store: ObjectStore, bucket: ObjectPath, tmp_path: Path
) -> None:
    tokens = np.arange(3_000_000, dtype=np.uint32)
    for name in ("a.bin", "b.bin"):
        (bucket / "tokens" / name).write_bytes(tokens.tobytes())
    source = DataSource(name="data", source="tokens", path=f"{bucket}/tokens", token_type="uint32")
    store.proxy.fail_after(18_000_000)  # each has 12 MB
    with pytest.raises(ObjectStoreUnavailable):
        open_tokens(source, FIELD)
    files = [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.suffix != ".lock"]
    assert [(file.name, file.stat().st_size) for file in files] == [("a.bin", 12_000_000)]
    store.proxy.come_back()
    store.proxy.fail_after(18_000_000)
    found = open_tokens(source, FIELD)
    assert found.count == 6_000_000
    assert np.array_equal(np.fromfile(found.files[1].path, np.uint32), tokens)


def test_an_outage_while_documents_are_read_is_no_error_of_the_configuration(
    store: ObjectStore, bucket: ObjectPath
) -> None:
    (bucket / "a.txt").write_bytes(b"some words " * 1_000_000)
    documents = open_documents(DataSource(name="data", source="text", path=str(bucket)), FIELD)
    parts = list(documents.parts(1 << 30))
    store.proxy.fail_after(6_000_000)
    with pytest.raises(ObjectStoreUnavailable):
        list(documents.read(parts[0]))


def test_a_job_trains_on_data_and_a_tokenizer_of_a_store(
    start: Starter, store: ObjectStore, bucket: ObjectPath, tmp_path: Path
) -> None:
    from trainyard_trainer.data.tokenizer import learn_bpe

    text = "the quick brown fox jumps over the lazy dog " * 2000
    learn_bpe(iter([text]), 512, tmp_path / "tokenizer.json")
    (bucket / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    (bucket / "data" / "a.txt").write_bytes(text.encode())
    data = {"path": f"{bucket}/data/*.txt", "tokenizer": "file", "tokenizerFile": f"{bucket}/tokenizer.json"}
    root = bucket / "job"
    [pod] = train(start, store, root, 2, procs=2, stop={"steps": 2}, data={**data, "vocabSize": 512})
    assert pod.wait(60) == 0, pod.stderr
    assert sorted(entry.name for entry in root.iterdir()) == [RUN_FILE, "step-00000002", "tokenizer.json"]
    [pod] = train(start, store, root, stop={"steps": 3}, data={**data, "vocabSize": 512})
    assert pod.wait(60) == 0, pod.stderr
    assert sorted(losses(pod)) == [3]
