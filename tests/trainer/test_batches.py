"""Text, tokenizers, the token cache, and batches."""

import json
import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.run_config import make_config
from tests.trainer.pods import Starter, finish
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.resource.datasets import Data
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.text import PIECE, find_text
from trainyard_trainer.data.tokenizer import BpeTokenizer, ByteTokenizer
from trainyard_trainer.data.tokens import TokenFile, Windows, prepare_tokens
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "cache"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def config_for(path: Path, **data: object) -> RunConfig:
    return make_config(1, data={"path": str(path), **data})


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return BpeTokenizer.train(iter(["the cat sat on the mat; " * 50, "the dog ate the hat. " * 50]), 512, path)


@given(text=st.text())
def test_bpe_round_trip(bpe: BpeTokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text).tolist()) == text


def test_bpe_shortens_what_it_was_trained_on(bpe: BpeTokenizer) -> None:
    assert len(bpe.encode("the cat ate the hat")) <= 6
    assert max(bpe.encode("the cat ☃").tolist()) < 512


def test_bpe_learns_the_same_entries_every_time(tmp_path: Path) -> None:
    text = find_text(Data(source="text", builtin="python-stdlib"))
    pieces = [next(iter(text.pieces())) for _ in range(1)] + ["äöü" * 99]
    for name in ("a.json", "b.json"):
        BpeTokenizer.train(iter(pieces), 1024, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_folder_is_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt", ".hidden/x.txt", "b/.y"):
        write(tmp_path / "text" / name, f"<{name}>")
    text = find_text(Data(source="text", path=str(tmp_path / "text")))
    assert "".join(text.pieces()) == "<a.txt><b/1.txt><b/2.txt>"


def test_long_files_are_read_in_pieces_without_loss(tmp_path: Path) -> None:
    content = "aé\r\n☃" * (PIECE // 4)
    text = find_text(Data(source="text", path=str(write(tmp_path / "long.txt", content))))
    pieces = list(text.pieces())
    assert "".join(pieces) == content
    assert max(map(len, pieces)) <= PIECE < len(content)


def test_builtin_text_is_source_without_tests() -> None:
    text = find_text(Data(source="text", builtin="python-stdlib"))
    names = [str(path.relative_to(sysconfig.get_path("stdlib"))) for path in text.files]
    assert {"argparse.py", "json/decoder.py"} < set(names)
    assert not any(part in name.split("/") for name in names for part in ("test", "tests", "site-packages"))
    assert sum(size for _, size, _ in text.identity()) > 5_000_000


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "text" / "a.txt", "fine")
    (tmp_path / "text" / "b.txt").symlink_to(tmp_path / "text" / "a.txt")
    text = find_text(Data(source="text", path=str(tmp_path / "text")))
    (tmp_path / "text" / "a.txt").unlink()
    with pytest.raises(ConfigError, match=r"spec\.trainer\.data\.path: .*/a\.txt cannot be read in the worker"):
        list(text.pieces())


@pytest.mark.parametrize(("tokenizer", "dtype"), [("byte", "uint8"), ("bpe", "uint16")])
def test_tokens_decode_to_the_text(tmp_path: Path, tokenizer: str, dtype: str) -> None:
    content = "Grüße, Jürgen! " * 200
    tokens = prepare_tokens(config_for(write(tmp_path / "text.txt", content), tokenizer=tokenizer, vocabSize=512))
    assert tokens.dtype == dtype
    ids = tokens.read().tolist()
    decoder = ByteTokenizer() if tokenizer == "byte" else BpeTokenizer(tokens.path.with_name("tokenizer.json"))
    assert decoder.decode(ids) == content
    assert tokens.count == len(ids)


def test_tokens_are_prepared_once_until_text_or_tokenizer_change(tmp_path: Path) -> None:
    path = write(tmp_path / "text.txt", "0123456789" * 10)
    first = prepare_tokens(config_for(path))
    inode = first.path.stat().st_ino
    again = prepare_tokens(config_for(path))
    assert (again, again.path.stat().st_ino) == (first, inode)
    write(path, "abcdefghij" * 11)
    changed = prepare_tokens(config_for(path))
    assert changed.path != first.path
    assert changed.digest != first.digest
    assert changed.fingerprint != first.fingerprint
    write(path, "the quick brown fox " * 99)
    by_byte, by_pair = (prepare_tokens(config_for(path, tokenizer=name)) for name in ("byte", "bpe"))
    assert by_byte.path != by_pair.path


def test_interrupted_preparation_is_done_again(tmp_path: Path) -> None:
    config = config_for(write(tmp_path / "text.txt", "0123456789" * 10))
    first = prepare_tokens(config)
    first.path.with_name("index.json").unlink()
    first.path.write_bytes(b"half")
    assert prepare_tokens(config) == first
    assert bytes(first.read().tolist()) == b"0123456789" * 10


def test_pods_that_start_together_prepare_the_data_once(start: Starter, tmp_path: Path) -> None:
    config = config_for(write(tmp_path / "text.txt", "the cat sat on the mat. " * 20_000), tokenizer="bpe")
    env = {constants.ENV_CACHE: str(tmp_path / "shared")}
    pods = [start(config, entry="tests.trainer.faults:prepare_and_count", env=env)[0] for _ in range(4)]
    assert finish(pods) == [0] * 4
    answers = [json.loads(pod.stdout) for pod in pods]
    assert len({answer["digest"] for answer in answers}) == 1
    assert sum(answer["prepared"] for answer in answers) == 1


def batches_for(tmp_path: Path, rank: int, size: int, micro: int) -> Batches:
    path = tmp_path / "numbers.bin"
    np.arange(200, dtype=np.uint16).tofile(path)
    tokens = TokenFile(path, "uint16", 200, "0" * 64)
    config = make_config(size, batch={"global": 8, "micro": micro})
    return Batches(Windows(tokens, 16), config, World(rank, rank, size, size, torch.device("cpu")))


def test_targets_are_the_inputs_one_later(tmp_path: Path) -> None:
    for inputs, targets in batches_for(tmp_path, 0, 1, 4).micro_batches(0):
        assert inputs.shape == targets.shape == (4, 16)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs + 1, targets)
        assert torch.all(inputs[:, 0] % 16 == 0)


def test_micro_batches_make_up_the_global_batch(tmp_path: Path) -> None:
    """Micro-batches of all ranks, in order, have the same rows as the batch of a single process."""
    (alone,) = (inputs for inputs, _ in batches_for(tmp_path, 0, 1, 8).micro_batches(3))
    parts = [inputs for rank in (0, 1) for inputs, _ in batches_for(tmp_path, rank, 2, 2).micro_batches(3)]
    assert len(parts) == 4
    assert torch.equal(torch.cat(parts), alone)


def test_every_token_is_a_target_once_per_epoch(tmp_path: Path) -> None:
    batches = batches_for(tmp_path, 0, 1, 8)
    windows = (200 - 1) // 16
    seen = torch.cat([targets.flatten() for step in range(windows) for _, targets in batches.micro_batches(step)])
    assert torch.bincount(seen).tolist() == [0] + [8] * (windows * 16)


def test_the_cache_folder_belongs_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainyard_trainer.data.tokens import cache_folder

    monkeypatch.delenv(constants.ENV_CACHE)
    assert cache_folder().name == f"trainyard-{os.getuid()}"
