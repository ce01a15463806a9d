"""Checkpoints on disk: which are complete, which are damaged, and which are removed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.catalog import complete_folder, complete_steps, find_damage, partial_folder
from trainyard_trainer.checkpoint.manifest import FORMAT, MANIFEST, ConvergenceState, FileChecksum, Manifest
from trainyard_trainer.runtime.errors import ConfigError


def make_manifest(step: int, **fields: Any) -> Manifest:
    return Manifest(step=step, samples=8 * step, model={"layers": 2}, optimizer="adamw", data=7, **fields)


def write(root: Path, step: int, *, complete: bool = True) -> Path:
    partial = partial_folder(root, step)
    partial.mkdir(parents=True)
    for name in ("a", "b"):
        (partial / name).write_bytes(f"{name}{step}".encode() * 1000)
    if not complete:
        return partial
    files = {name: catalog.file_checksum(partial / name) for name in ("a", "b")}
    catalog.commit(partial, make_manifest(step, files=files))
    return complete_folder(root, step)


def test_only_committed_checkpoints_are_complete_and_the_newest_comes_first(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 200_000_000)
    write(tmp_path, 20)
    write(tmp_path, 30, complete=False)
    assert complete_steps(tmp_path) == [200_000_000, 20, 10]
    assert complete_steps(tmp_path / "none") == []
    catalog.remove_partial(tmp_path)
    assert not partial_folder(tmp_path, 30).exists()


def test_a_checkpoint_of_which_files_are_missing_is_not_complete(tmp_path: Path) -> None:
    """Two nodes may have a volume each; rank 0 then sees its own files only."""
    complete = write(tmp_path, 1)
    files = Manifest.read(complete).files
    partial = write(tmp_path, 2, complete=False)
    (partial / "b").unlink()
    with pytest.raises(
        OSError, match="b is missing where rank 0 looks for it; all workers must write to the same volume"
    ):
        catalog.commit(partial, make_manifest(2, files=files))
    (partial / "b").write_bytes(b"short")
    with pytest.raises(OSError, match=f"b has 5 bytes instead of {files['b'].bytes} where rank 0 looks for it"):
        catalog.commit(partial, make_manifest(2, files=files))
    assert complete_steps(tmp_path) == [1]


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    catalog.remove_old(tmp_path, keep=2)
    assert complete_steps(tmp_path) == [4, 3]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_removal_leaves_no_complete_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may be killed when some of the files are gone."""
    for step in (1, 2):
        write(tmp_path, step)

    def remove_one_file(folder: Path, **_: Any) -> None:
        (folder / "a").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", remove_one_file)
    with pytest.raises(KeyboardInterrupt):
        catalog.remove_old(tmp_path, keep=1)
    assert complete_steps(tmp_path) == [2]
    monkeypatch.undo()
    catalog.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_manifest_and_both_folders_are_synced_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure a complete name must not stand for files that are not on the disk."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    write(tmp_path, 5)
    assert events == [MANIFEST, "step-00000005.partial", "rename", tmp_path.name]


def test_a_checkpoint_of_the_same_step_replaces_a_damaged_one(tmp_path: Path) -> None:
    (write(tmp_path, 5) / "a").unlink()
    folder = write(tmp_path, 5)
    assert find_damage(folder) is None


def test_the_size_of_a_checkpoint_is_that_of_its_files(tmp_path: Path) -> None:
    assert catalog.size(write(tmp_path, 5)) == 2 * len("a5") * 1000


@pytest.mark.parametrize(
    "fault",
    ["truncated", "flipped", "missing", "no manifest", "broken manifest", "no format", "unknown format", "no field"],
)
def test_every_kind_of_damage_is_found_by_one_of_the_ranks(tmp_path: Path, fault: str) -> None:
    folder = write(tmp_path, 5)
    assert find_damage(folder) is None
    content = (folder / "b").read_bytes()
    manifest = json.loads((folder / MANIFEST).read_text())
    match fault:
        case "truncated":
            (folder / "b").write_bytes(content[:-1])
        case "flipped":
            (folder / "b").write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        case "missing":
            (folder / "b").unlink()
        case "no manifest":
            (folder / MANIFEST).unlink()
        case "broken manifest":
            (folder / MANIFEST).write_text('{"format": 1, "fi')
        case "no format":
            (folder / MANIFEST).write_text("[]")
        case "unknown format":
            (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 0}))
        case "no field":
            del manifest["samples"]
            (folder / MANIFEST).write_text(json.dumps(manifest))
    assert [find_damage(folder, share, 2) for share in (0, 1)] != [None, None]
    assert find_damage(folder) is not None


@pytest.mark.parametrize(
    ("shares", "read"), [(1, [13]), (4, [4, 3, 3, 3]), (6, [3, 2, 2, 2, 2, 2]), (16, [2, *11 * [1]])]
)
def test_ranks_check_the_files_that_they_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: int, read: list[int]
) -> None:
    """Twelve ranks have written; each file is read once, by the rank that has its number."""
    files = {f"__{rank}_0.distcp": rank for rank in range(12)} | {".metadata": 0}
    manifest = json.loads((write(tmp_path, 5) / MANIFEST).read_text())
    content = {**manifest, "files": {name: {"bytes": 1, "crc32": 0} for name in files}}
    (tmp_path / "step-00000005" / MANIFEST).write_text(json.dumps(content))
    seen: list[list[str]] = []

    def read_file(path: Path) -> FileChecksum:
        seen[-1].append(path.name)
        return FileChecksum(1, 0)

    monkeypatch.setattr(catalog, "file_checksum", read_file)
    for share in range(shares):
        seen.append([])
        assert find_damage(tmp_path / "step-00000005", share, shares) is None
        assert all(files[name] % shares == share for name in seen[-1])
    assert sorted(name for names in seen for name in names) == sorted(files)
    assert [len(names) for names in seen if names] == read


# --- the manifest ------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = write(tmp_path, 5)
    found = Manifest.read(folder)
    assert found.replace(files={}) == make_manifest(5)
    assert found.files["a"] == catalog.file_checksum(folder / "a")
    convergence = ConvergenceState(lowest=1.5, stale=2)
    partial = partial_folder(tmp_path, 6)
    partial.mkdir()
    written = make_manifest(6, convergence=convergence, stopped_because="converged", bad_steps=3)
    catalog.commit(partial, written)
    assert Manifest.read(complete_folder(tmp_path, 6)) == written


def test_a_checkpoint_of_a_newer_trainer_is_refused_rather_than_passed_over_as_damaged(tmp_path: Path) -> None:
    """Otherwise an older trainer would begin again from an older checkpoint, or from nothing."""
    folder = write(tmp_path, 5)
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT + 1, "anything": "else"}))
    with pytest.raises(ConfigError) as error:
        find_damage(folder)
    assert str(error.value) == (
        f"spec.checkpoint: {folder} has the format {FORMAT + 1}, but this version of the trainer reads formats up to "
        f"{FORMAT}; use the version that wrote it (spec.image), or choose another spec.checkpoint volume"
    )
