"""Preparation of documents: once for all pods, in parallel, resumable, and in bounded memory."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_config import make_config
from tests.trainer.pods import ROOT, Starter, environment, finish, wait_until
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard_trainer.data import encoding_tasks, lease, preparation
from trainyard_trainer.data.lease import Leases
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.data.token_set import INDEX
from trainyard_trainer.data.tokenizer import BPE_END, BYTE_END, JsonTokenizer
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.runtime.errors import ConfigError

WORDS = "the quick brown fox jumps over the lazy dog; Grüße, Jürgen! "


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "cache"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def config_for(path: Path, **data: Any) -> RunConfig:
    return make_config(1, data={"path": str(path), **data})


def prepared(config: RunConfig, **options: Any) -> Windows:
    samples = load_samples(config, **options)
    assert isinstance(samples, Windows)
    return samples


def ids_of(samples: Windows) -> list[int]:
    """Return all tokens of the first source."""
    import numpy as np

    tokens = samples._given[0].tokens
    ids = np.empty(tokens.count, dtype=np.int64)
    tokens.read(0, ids)
    return [int(n) for n in ids]


@pytest.mark.parametrize(("documents", "end"), [("joined", ""), ("separated", BPE_END), ("isolated", BPE_END)])
def test_tokens_decode_to_the_documents(tmp_path: Path, documents: str, end: str) -> None:
    for name in "ab":
        write(tmp_path / "text" / name, f"{name}: {WORDS}" * 50)
    samples = prepared(config_for(tmp_path / "text", tokenizer="bpe", vocabSize=512, documents=documents))
    assert samples.tokenizer is not None
    decoder = JsonTokenizer(samples.tokenizer.path, separates=False)
    assert decoder.decode(ids_of(samples)) == "".join(f"{name}: {WORDS}" * 50 + end for name in "ab")


def test_bytes_end_with_a_byte_that_no_text_has(tmp_path: Path) -> None:
    write(tmp_path / "text" / "a", WORDS)
    write(tmp_path / "text" / "b", "ü")
    ids = ids_of(prepared(config_for(tmp_path / "text")))
    assert bytes(ids) == WORDS.encode() + b"\xff" + "ü".encode() + b"\xff"
    assert BYTE_END == 0xFF
    assert prepared(config_for(tmp_path / "text")).tokenizer is None


def test_tokens_are_prepared_once_until_documents_or_tokenizer_change(tmp_path: Path) -> None:
    path = write(tmp_path / "text", WORDS * 10)
    reported: list[float] = []
    first = prepared(config_for(path), report=lambda share, _: reported.append(share))
    assert reported[-1] == 1.0
    reported.clear()
    again = prepared(config_for(path), report=lambda share, _: reported.append(share))
    assert (again.fingerprint, reported) == (first.fingerprint, [])
    fingerprints = {first.fingerprint}
    for changes in ({"documents": "joined"}, {"tokenizer": "bpe", "vocabSize": 512}):
        fingerprints.add(prepared(config_for(path, **changes)).fingerprint)
    write(path, "abcdefghij" * 11)
    fingerprints.add(prepared(config_for(path)).fingerprint)
    assert len(fingerprints) == 4


def small_tasks(patch: pytest.MonkeyPatch, size: int = 10_000) -> None:
    for name in ("MIN_TASK", "MAX_TASK"):
        patch.setattr(preparation, name, size)
    patch.setattr(preparation, "SMALL", 0)


def test_the_tokens_are_the_same_with_any_number_of_processes_and_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "text", WORDS * 3000)
    config = config_for(path, tokenizer="bpe", vocabSize=512)
    alone = ids_of(prepared(config))
    small_tasks(monkeypatch)
    monkeypatch.setattr(preparation, "BYTE_FACTOR", 1)
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "other"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert ids_of(prepared(config)) == alone
    assert len(list((tmp_path / "other").glob("*/*.bin"))) > 15
    assert not list((tmp_path / "other").glob("*/*.lease")) + list((tmp_path / "other").glob("*/*.part"))


PROGRAM = """\
import sys
from pathlib import Path
from trainyard.config import RunConfig
from trainyard_trainer.data import preparation
from trainyard_trainer.data.loading import load_samples
preparation.MIN_TASK = preparation.MAX_TASK = 10_000
preparation.SMALL = 0
config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
samples = load_samples(config, lambda share, seconds: print(share, flush=True))
print(samples.fingerprint, flush=True)
"""


def start_preparation(tmp_path: Path, config: RunConfig, cache: Path, **env: str) -> subprocess.Popen[str]:
    path = write(tmp_path / "config.json", json.dumps(config.to_dict()))
    command = [sys.executable, "-c", PROGRAM, str(path)]
    values = {**environment(), constants.ENV_CACHE: str(cache), **env}
    return subprocess.Popen(command, env=values, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_preparation_resumes_where_it_was(tmp_path: Path) -> None:
    """It has done some tasks; the next one does the others only, and the tokens are as if nothing had happened."""
    path = write(tmp_path / "text", "".join(f"{i} {WORDS}" for i in range(8_000)))
    tokenizer = write(tmp_path / "tokenizer.json", "")
    from trainyard_trainer.data.tokenizer import learn_bpe

    learn_bpe(iter([WORDS * 20]), 512, tokenizer)
    config = config_for(path, tokenizer="file", tokenizerFile=str(tokenizer), vocabSize=512)
    killed = start_preparation(tmp_path, config, tmp_path / "killed")
    folder = tmp_path / "killed"
    wait_until(lambda: len(list(folder.glob("*/*.json"))) >= 5, 60)
    killed.kill()
    killed.communicate()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*/0*.json")}
    assert not list(folder.glob(f"*/{INDEX}"))
    resumed = start_preparation(tmp_path, config, folder)
    untouched = start_preparation(tmp_path, config, tmp_path / "untouched")
    outputs = [process.communicate(timeout=120)[0].split() for process in (resumed, untouched)]
    assert outputs[0][-1] == outputs[1][-1]
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not list(folder.glob("*/*.part")) + list(folder.glob("*/*.lease"))


def test_pods_share_the_work_and_none_does_it_twice(start: Starter, tmp_path: Path) -> None:
    path = write(tmp_path / "text.txt", WORDS * 20_000)
    config = config_for(path, tokenizer="bpe", vocabSize=512, cache=str(tmp_path / "shared"))
    pods = [start(config, entry="tests.trainer.faults:prepare_and_count")[0] for _ in range(4)]
    assert finish(pods) == [0] * 4
    answers = [json.loads(pod.stdout.splitlines()[-1]) for pod in pods]
    assert len({answer["fingerprint"] for answer in answers}) == 1
    folder = next((tmp_path / "shared").glob(f"*/{INDEX}")).parent
    tasks = len(json.loads((folder / INDEX).read_text())["files"])
    assert tasks > 10
    assert sum(answer["encoded"] for answer in answers) == tasks
    assert len(list((tmp_path / "shared").glob("*/tokenizer.json"))) == 1


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """One document of 60 MB, without a line break, in one process."""
    path = write(tmp_path / "text", WORDS * 1_000_000)
    write(tmp_path / "config.json", json.dumps(config_for(path).to_dict()))
    peak = "__import__('resource').getrusage(0).ru_maxrss"
    program = re.sub(r"(?m)^preparation.*\n", "", PROGRAM).replace("samples =", f"print({peak}); samples =")
    command = [sys.executable, "-c", program + f"print({peak})", str(tmp_path / "config.json")]
    env = {**environment(), constants.ENV_CACHE: str(tmp_path / "cache")}
    lines = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert int(lines[-1]) - int(lines[0]) < 20_000  # KiB


def test_a_mistake_in_a_document_is_one_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n' * 1000 + '{"body": "x"}\n')
    config = make_config(1, data={"source": "jsonl", "path": str(path)})
    small_tasks(monkeypatch, 5_000)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"there is no field text"):
            load_samples(config)
    assert not list((tmp_path / "cache").glob("*/*.lease"))


def test_a_shared_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "text", WORDS * 10)
    config = config_for(path, cache="/proc/nowhere")
    with pytest.raises(ConfigError, match=r"spec\.trainer\.data\.cache: /proc/nowhere cannot be written to"):
        load_samples(config)
    # Beside the checkpoints nobody has asked for it, and each pod prepares for itself.
    monkeypatch.setenv(constants.ENV_CHECKPOINTS, "/proc/nowhere")
    monkeypatch.setattr(preparation, "SMALL", 0)
    config = make_config(1, data={"path": str(path)}, checkpoint={"everySteps": 1})
    assert prepared(config).count > 0


def test_a_complete_set_needs_no_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "text", WORDS * 10)
    config = config_for(path, cache=str(tmp_path / "shared"))
    first = prepared(config)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert prepared(config).fingerprint == first.fingerprint


def test_beside_the_checkpoints_if_it_is_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(constants.ENV_CHECKPOINTS, str(tmp_path / "checkpoints"))
    path = write(tmp_path / "text", WORDS * 10)
    config = make_config(1, data={"path": str(path)}, checkpoint={"everySteps": 1})
    load_samples(config)
    assert not (tmp_path / "checkpoints").exists()
    monkeypatch.setattr(preparation, "SMALL", 1)
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "other"))
    load_samples(config)
    assert len(list((tmp_path / "checkpoints" / "data").glob(f"*/{INDEX}"))) == 1


def test_a_larger_tokenizer_than_the_vocabulary(tmp_path: Path) -> None:
    from trainyard_trainer.data.tokenizer import learn_bpe

    learn_bpe(iter([WORDS * 20]), 300, tmp_path / "tokenizer.json")
    path = write(tmp_path / "text", WORDS * 10)
    given = {"tokenizer": "file", "tokenizerFile": str(tmp_path / "tokenizer.json")}
    with pytest.raises(ConfigError, match=r"spec\.trainer\.data\.vocabSize: the tokenizer has token ids up to"):
        load_samples(config_for(path, **given, vocabSize=256))
    assert load_samples(config_for(path, **given, vocabSize=512)).count > 0


def test_the_tokenizer_of_a_run_is_used_instead_of_a_new_one(tmp_path: Path) -> None:
    path = write(tmp_path / "text", WORDS * 10)
    config = config_for(path, tokenizer="bpe", vocabSize=512)
    saved = prepared(config).tokenizer
    assert saved is not None
    write(path, "completely other text " * 100)
    assert prepared(config, tokenizer=saved.path).tokenizer == saved
    changed = prepared(config).tokenizer
    assert changed is not None
    assert changed.sha256 != saved.sha256


def test_one_of_many_gets_a_lease(tmp_path: Path) -> None:
    got: list[int] = []
    barrier = threading.Barrier(8)

    def take(number: int) -> None:
        with Leases() as leases:
            barrier.wait()
            if leases.acquire(tmp_path / "lease"):
                got.append(number)
            barrier.wait()

    threads = [threading.Thread(target=take, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert list(tmp_path.iterdir()) == []


class Holder:
    """A process on another machine that holds a lease."""

    def __init__(self, path: Path, host: str = "another") -> None:
        self.path, self.beats, self.host = path, 0, host

    def beat(self, process: int = 1) -> None:
        self.beats += 1
        self.path.write_text(json.dumps({"host": self.host, "process": process, "beat": self.beats}))


def test_a_lease_is_taken_over_when_its_heartbeat_stops(tmp_path: Path) -> None:
    now = 0.0
    leases, holder = Leases(lambda: now), Holder(tmp_path / "lease")
    for _ in range(5):
        holder.beat()
        assert not leases.acquire(holder.path)
        now += lease.STALE_SECONDS - 1
        assert not leases.acquire(holder.path)
        now += 0.5
    now += lease.STALE_SECONDS
    assert leases.acquire(holder.path)
    assert not Leases().acquire(holder.path)


def test_a_lease_that_is_just_being_written_is_held(tmp_path: Path) -> None:
    (tmp_path / "lease").touch()
    assert not Leases().acquire(tmp_path / "lease")


def test_the_lease_of_a_process_that_has_ended_here_is_free_at_once(tmp_path: Path) -> None:
    import socket

    ended = subprocess.Popen(["true"])
    ended.wait()
    holder = Holder(tmp_path / "lease", socket.gethostname())
    holder.beat(ended.pid)
    assert Leases().acquire(holder.path)
    holder.beat(os.getpid())
    assert not Leases().acquire(holder.path)


def test_a_held_lease_has_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    with Leases() as leases:
        assert leases.acquire(tmp_path / "lease")
        seen: set[bytes] = set()

        def changed() -> bool:
            seen.add((tmp_path / "lease").read_bytes())
            return len(seen) > 2

        wait_until(changed, 10)


def test_an_encoder_ends_with_the_process_that_has_started_it(tmp_path: Path) -> None:
    path = write(tmp_path / "text", WORDS * 100_000)
    process = start_preparation(tmp_path, config_for(path, tokenizer="bpe", vocabSize=512), tmp_path / "c")
    import psutil

    wait_until(lambda: bool(psutil.Process(process.pid).children()), 60)
    children = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_no_encoder_imports_torch() -> None:
    """It starts in a fraction of a second, and needs little memory."""
    command = [sys.executable, "-X", "importtime", "-c", "import trainyard_trainer.data.encoding"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(re.findall(r"\| +([a-z_]+)$", done.stderr, re.M))
    assert "numpy" in imported
    assert not imported & {"torch", "pyarrow", "datasets", "pandas", "tokenizers"}


def test_processes_are_as_many_as_the_memory_of_the_container_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding_tasks, "CGROUP", tmp_path)
    machine = encoding_tasks.available_memory()
    for limit, used, expected in (("max", "5", machine), ("3000000", "1000000", 2_000_000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        assert encoding_tasks.available_memory() == pytest.approx(expected, rel=0.2)
