"""Checkpoints on disk: what is complete, what is damaged, what goes."""

from pathlib import Path

import pytest

from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.catalog import FORMAT, complete_folder, complete_steps, find_damage, partial_folder


def write(root: Path, step: int, *, complete: bool = True) -> Path:
    partial = partial_folder(root, step)
    partial.mkdir(parents=True)
    for name in ("a", "b"):
        (partial / name).write_bytes(f"{name}{step}".encode() * 1000)
    if not complete:
        return partial
    files = {name: vars(catalog.file_checksum(partial / name)) for name in ("a", "b")}
    catalog.commit(partial, {"format": FORMAT, "files": files})
    return complete_folder(root, step)


def test_only_what_was_committed_counts_and_the_newest_comes_first(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 200_000_000)
    write(tmp_path, 20)
    write(tmp_path, 30, complete=False)
    assert complete_steps(tmp_path) == [200_000_000, 20, 10]
    assert complete_steps(tmp_path / "none") == []
    catalog.remove_partial(tmp_path)
    assert not partial_folder(tmp_path, 30).exists()


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    catalog.remove_old(tmp_path, keep=2)
    assert complete_steps(tmp_path) == [4, 3]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_of_the_same_step_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    (write(tmp_path, 5) / "a").unlink()
    folder = write(tmp_path, 5)
    assert find_damage(folder) is None


def test_the_size_of_a_checkpoint_is_that_of_its_files(tmp_path: Path) -> None:
    assert catalog.size(write(tmp_path, 5)) == 2 * len("a5") * 1000


@pytest.mark.parametrize("fault", ["truncated", "flipped", "missing", "no manifest", "broken manifest", "format"])
def test_every_kind_of_damage_is_found_by_one_of_the_ranks(tmp_path: Path, fault: str) -> None:
    folder = write(tmp_path, 5)
    assert find_damage(folder) is None
    content = (folder / "b").read_bytes()
    match fault:
        case "truncated":
            (folder / "b").write_bytes(content[:-1])
        case "flipped":
            (folder / "b").write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        case "missing":
            (folder / "b").unlink()
        case "no manifest":
            (folder / catalog.MANIFEST).unlink()
        case "broken manifest":
            (folder / catalog.MANIFEST).write_text('{"format": 1, "fi')
        case "format":
            (folder / catalog.MANIFEST).write_text('{"format": 99, "files": {}}')
    assert [find_damage(folder, share, 2) for share in (0, 1)] != [None, None]
    assert find_damage(folder) is not None
