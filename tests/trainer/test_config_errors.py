"""Mistakes that only a worker can detect: exit code 78, one line with the fix, no traceback."""

import json
from pathlib import Path

import pytest

from tests.support.run_config import make_config
from tests.trainer.pods import Starter, finish
from trainyard.protocol import constants
from trainyard_trainer.checkpoint import shared_folder


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(start: Starter, path: Path, **data: object) -> str:
    (pod,) = start(make_config(1, data={"path": str(path), **data}))
    assert pod.wait(60) == constants.EXIT_INVALID_CONFIG
    assert pod.word is not None
    assert pod.word.exception == "ConfigError"
    assert pod.stderr == f"error: {pod.word.message}\n"
    return pod.word.message


def test_empty_folder(start: Starter, tmp_path: Path) -> None:
    assert refusal(start, tmp_path) == (
        f"spec.trainer.data.path: {tmp_path} holds no files; put the data there, or correct the path"
    )


def test_empty_file(start: Starter, tmp_path: Path) -> None:
    path = write(tmp_path / "empty.txt", b"")
    assert refusal(start, path) == (
        f"spec.trainer.data.path: {path} gives 0 tokens, and one sample needs 17 (sequenceLength + 1); add data, "
        "or lower spec.trainer.data.sequenceLength"
    )


def test_text_shorter_than_a_sample(start: Starter, tmp_path: Path) -> None:
    assert "gives 16 tokens" in refusal(start, write(tmp_path / "short.txt", b"0123456789abcde"))


def test_empty_text_for_bpe(start: Starter, tmp_path: Path) -> None:
    assert "gives 0 tokens" in refusal(start, write(tmp_path / "empty.txt", b""), tokenizer="bpe")


def test_not_utf8(start: Starter, tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"fine")
    path = write(tmp_path / "b.txt", "Grüße".encode("latin-1"))
    message = refusal(start, tmp_path)
    assert message.startswith(f"spec.trainer.data.path: {path} is not UTF-8 text (")
    assert message.endswith("); convert the file, or leave it out")


def test_cache_folder_that_cannot_be_created(start: Starter) -> None:
    (pod,) = start(make_config(1), env={constants.ENV_CACHE: "/proc/nowhere"})
    assert pod.wait(60) == constants.EXIT_INVALID_CONFIG
    assert pod.word is not None
    assert pod.word.message.startswith("TRAINYARD_CACHE: /proc/nowhere cannot be created")
    assert pod.word.message.endswith("set TRAINYARD_CACHE in spec.env to a folder that can be written")


def test_configuration_for_another_number_of_processes(start: Starter) -> None:
    pods = start(make_config(4), 1, 2)
    assert finish(pods) == [constants.EXIT_INVALID_CONFIG]
    assert pods[0].word is not None
    assert "is for 4 processes, but 2 were started" in pods[0].word.message


def test_workers_with_different_text(start: Starter) -> None:
    pods = start(make_config(2), 2, entry="tests.trainer.faults:different_text")
    assert finish(pods) == [constants.EXIT_INVALID_CONFIG] * 2
    assert pods[0].word is not None
    assert "do not hold the same data" in pods[0].word.message


@pytest.mark.parametrize("mode", ["ddp", "server"])
def test_workers_without_a_common_volume(start: Starter, tmp_path: Path, mode: str) -> None:
    """Otherwise each save of a run would fail, and a restart would begin again."""
    servers = {"data": {"mode": "parameterServer"}} if mode == "server" else {}
    config = make_config(2, servers, checkpoint={})
    folders = {constants.ENV_CHECKPOINTS: str(tmp_path / "volume-")}
    pods = start(config, 2, entry="tests.trainer.storage_faults:own_volumes", env=folders)
    assert finish(pods) == [constants.EXIT_INVALID_CONFIG] * len(pods)
    blind = "worker 1, the parameter server" if mode == "server" else "worker 1"
    for index, pod in enumerate(pods):
        assert pod.word is not None
        assert pod.word.message == (
            f"spec.checkpoint: {blind} cannot see the files of worker 0 in {tmp_path}/volume-{index}; use one volume "
            "for all workers (a claim with accessModes: [ReadWriteMany]), or spec.checkpoint.url"
        )
        assert "Traceback" not in pod.stderr
    assert list((tmp_path / "volume-0").iterdir()) == []


def test_a_common_volume_may_show_new_files_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([False, False, True])
    monkeypatch.setattr(Path, "exists", lambda _: next(looks))
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert shared_folder.appears(tmp_path / "file")


@pytest.mark.parametrize("content", ["{}", "not json"])
def test_unreadable_configuration(start: Starter, tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "config.json", content.encode())
    (pod,) = start(make_config(1), env={constants.ENV_CONFIG: str(path)})
    assert pod.wait(60) == constants.EXIT_INVALID_CONFIG
    assert pod.word is not None
    assert str(path) in pod.word.message
    assert "Traceback" not in pod.stderr


def test_missing_configuration(start: Starter) -> None:
    (pod,) = start(make_config(1), env={constants.ENV_CONFIG: "/nowhere/config.json"})
    assert pod.wait(60) == constants.EXIT_INVALID_CONFIG
    assert json.loads(pod.word.encode() if pod.word else "{}")["message"].startswith("TRAINYARD_CONFIG: /nowhere")


def test_compilation_without_a_compiler(start: Starter) -> None:
    (pod,) = start(make_config(1, compile=True), env={"CXX": "/nowhere/g++"})
    assert pod.wait(60) == constants.EXIT_INVALID_CONFIG
    assert pod.stderr.startswith("error: spec.trainer.compile: there is no C++ compiler (g++) in the worker; remove it")
