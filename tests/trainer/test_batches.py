"""Windows of tokens of every format, several sources, and the batches that each rank reads."""

import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.run_config import make_config
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.resource.datasets import DataSource
from trainyard_trainer.data import token_set
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.downloads import cache_folder
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.data.prefetch import Prefetch
from trainyard_trainer.data.sources import WindowedSource
from trainyard_trainer.data.token_set import TokenFile, TokenSet, open_tokens
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World

FIELD = "spec.trainer.data.path"
ALONE = World(0, 0, 1, 1, torch.device("cpu"))


def tokens_of(path: Path, ids: Any, dtype: str = "uint16") -> TokenSet:
    array = np.asarray(ids, dtype)
    array.tofile(path)
    return TokenSet([TokenFile(path, dtype, 0, len(array))], 7)


def windows_of(path: Path, ids: Any, length: int = 16, end: int | None = None) -> Windows:
    return Windows([WindowedSource("data", 1.0, tokens_of(path, ids), 0, None)], length, 1 << 16, end)


def batches_for(tmp_path: Path, rank: int, size: int, micro: int) -> Batches:
    config = make_config(size, batch={"global": 8, "micro": micro})
    return Batches(
        windows_of(tmp_path / "numbers.bin", np.arange(200)), config, World(rank, rank, size, size, torch.device("cpu"))
    )


def test_targets_are_the_inputs_one_later(tmp_path: Path) -> None:
    for inputs, targets, documents in batches_for(tmp_path, 0, 1, 4).micro_batches(0):
        assert inputs.shape == targets.shape == (4, 16)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs + 1, targets)
        assert torch.all(inputs[:, 0] % 16 == 0)
        assert documents is None


def test_micro_batches_make_up_the_global_batch(tmp_path: Path) -> None:
    """Micro-batches of all ranks, in order, have the same rows as the batch of a single process."""
    (alone,) = (batch.inputs for batch in batches_for(tmp_path, 0, 1, 8).micro_batches(3))
    parts = [batch.inputs for rank in (0, 1) for batch in batches_for(tmp_path, rank, 2, 2).micro_batches(3)]
    assert len(parts) == 4
    assert torch.equal(torch.cat(parts), alone)


def test_every_token_is_a_target_once_per_epoch(tmp_path: Path) -> None:
    batches = batches_for(tmp_path, 0, 1, 8)
    windows = (200 - 1) // 16
    seen = torch.cat([batch.targets.flatten() for step in range(windows) for batch in batches.micro_batches(step)])
    assert torch.bincount(seen).tolist() == [0] + [8] * (windows * 16)


def test_steps_in_any_order_are_those_that_were_asked_for(tmp_path: Path) -> None:
    """A rollback goes back, and a change of the batch to another position; what was read ahead is dropped."""
    batches, other = batches_for(tmp_path, 0, 1, 4), batches_for(tmp_path, 0, 1, 4)
    expected = [torch.cat([b.inputs for b in other.micro_batches(step)]) for step in range(6)]
    for step in (0, 1, 2, 1, 5, 0, 3, 3):
        assert torch.equal(torch.cat([b.inputs for b in batches.micro_batches(step)]), expected[step])
    next(iter(batches.micro_batches(4)))
    assert torch.equal(torch.cat([b.inputs for b in batches.micro_batches(0)]), expected[0])
    batches.set_position(step=7, samples_consumed=8)
    assert torch.equal(torch.cat([b.inputs for b in batches.micro_batches(7)]), expected[1])
    batches.close()


def test_the_cache_folder_belongs_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv(constants.ENV_CACHE, raising=False)
    assert cache_folder().name == f"trainyard-{os.getuid()}"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_files_read_like_one_array(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: Any) -> None:
    folder = tmp_path_factory.mktemp("files")
    files = []
    for number, size in enumerate(sizes):
        dtype = ("uint8", "uint16", "uint32")[number % 3]
        np.concatenate([[9] * number, np.arange(size) + 10 * number]).astype(dtype).tofile(folder / str(number))
        files.append(TokenFile(folder / str(number), dtype, number * np.dtype(dtype).itemsize, size))
    whole = [10 * number + each for number, size in enumerate(sizes) for each in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_set, "MAX_MAPS", 2)
        tokens = TokenSet(files, 0)
        assert tokens.count == len(whole)
        for _ in range(5):
            start = data.draw(st.integers(0, len(whole)))
            stop = data.draw(st.integers(start, len(whole)))
            into = np.empty(stop - start, np.int64)
            tokens.read(start, into)
            assert into.tolist() == whole[start:stop]
        assert len(tokens._maps) <= 2


IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8] * 10


def write_megatron(path: Path, sequences: list[list[int]], lost: int = 0) -> None:
    """Write tokens as Megatron-LM's IndexedDatasetBuilder does, the last `lost` of them left out."""
    lengths = np.array([len(each) for each in sequences], np.int32)
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * 2
    ids = np.concatenate(sequences).astype(np.uint16)
    ids[: len(ids) - lost].tofile(path)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(sequences), len(sequences) + 1)
    documents = np.arange(len(sequences) + 1, dtype=np.int64)
    path.with_suffix(".idx").write_bytes(header + lengths.tobytes() + pointers.tobytes() + documents.tobytes())


def write_with_header(path: Path, ids: list[int]) -> None:
    """Write tokens as llm.c does."""
    header = np.zeros(256, np.int32)
    header[:3] = (20240520, 1, len(ids))
    path.write_bytes(header.tobytes() + np.array(ids, np.uint16).tobytes())


def read_all(tokens: TokenSet) -> list[int]:
    into = np.empty(tokens.count, np.int64)
    tokens.read(0, into)
    return [int(n) for n in into]


def tokens_source(path: Path, token_type: str = "uint16") -> DataSource:
    return DataSource.model_validate({"name": "d", "source": "tokens", "path": str(path), "tokenType": token_type})


@pytest.mark.parametrize("form", ["flat", "wide", "header", "megatron", "folder"])
def test_tokens_of_other_programs(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.bin"
    if form == "flat":
        np.array(IDS, np.uint16).tofile(path)
    elif form == "wide":
        np.array(IDS, np.uint32).tofile(path)
    elif form == "header":
        write_with_header(path, IDS)
    elif form == "megatron":
        write_megatron(path, [IDS[:50], IDS[50:51], IDS[51:]])
    else:
        np.array(IDS[:10], np.uint16).tofile(tmp_path / "a.bin")
        write_megatron(tmp_path / "b.bin", [IDS[10:]])
        path = tmp_path
    found = open_tokens(tokens_source(path, "uint32" if form == "wide" else "uint16"), FIELD)
    assert read_all(found) == IDS
    assert (
        found.fingerprint
        == open_tokens(tokens_source(path, "uint32" if form == "wide" else "uint16"), FIELD).fingerprint
    )


def test_a_changed_token_changes_the_fingerprint(tmp_path: Path) -> None:
    found = []
    for change in (None, 0, 60, 119):
        ids = [7 if position == change else each for position, each in enumerate(IDS)]
        np.array(ids, np.uint16).tofile(tmp_path / "a.bin")
        found.append(open_tokens(tokens_source(tmp_path), FIELD).fingerprint)
    assert len(set(found)) == 4


def test_prepared_tokens_are_a_source_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "cache"))
    (tmp_path / "text").write_text("one two three " * 20)
    prepared = load_samples(make_config(1, data={"path": str(tmp_path / "text")}))
    (index,) = (tmp_path / "cache").glob("*/index.json")
    data = {"source": "tokens", "path": str(index.parent), "vocabSize": 256}
    again = load_samples(make_config(1, data=data))
    assert (again.fingerprint, again.count) == (prepared.fingerprint, prepared.count)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"123"), "is not an array of uint16; set tokenType"),
        (lambda path: (path.touch(), path.with_suffix(".idx").write_bytes(b"x")), "is not an index of Megatron"),
        (lambda path: write_megatron(path, [IDS], lost=100), "is shorter than"),
        (lambda path: path.with_suffix(".txt").touch(), "holds no files that end with .bin"),
    ],
)
def test_wrong_tokens_are_refused_with_the_fix(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / "a.bin")
    with pytest.raises(ConfigError) as error:
        open_tokens(tokens_source(tmp_path), FIELD)
    assert str(error.value).startswith(f"{FIELD}: {tmp_path}")
    assert message in str(error.value)


def test_a_token_id_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "a.bin")
    config = make_config(1, data={"source": "tokens", "path": str(tmp_path), "vocabSize": 512})
    batches = Batches(load_samples(config), config, ALONE)
    everything = (batch for step in range(8) for batch in batches.micro_batches(step))
    with pytest.raises(ConfigError, match=r"spec\.trainer\.data\.vocabSize: the data has the token id"):
        list(everything)


def test_documents_are_numbered_within_their_window(tmp_path: Path) -> None:
    windows = windows_of(tmp_path / "a.bin", [1, 2, 0, 3, 0, 0, 4, 5, 6, 7, 0, 8, 9], length=4, end=0)
    batch = windows.read(np.array([0, 1, 2]), 0, 1)
    assert batch.documents is not None
    assert batch.documents.dtype == torch.int32
    assert batch.inputs.tolist() == [[1, 2, 0, 3], [0, 0, 4, 5], [6, 7, 0, 8]]
    assert batch.documents.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2], [0, 0, 0, 1]]
    part = windows.read(np.array([0, 1, 2]), 1, 2)
    assert part.inputs.tolist() == [[0, 3], [4, 5], [0, 8]]
    assert part.documents is not None
    assert part.documents.tolist() == batch.documents.tolist()


def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **trainer: Any) -> RunConfig:
    """Return a job with three sources: tokens 0 to 99, 100 to 199, and 200 to 255."""
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "cache"))
    for name, first, last, copies in (("a", 0, 100, 50), ("b", 100, 200, 3), ("c", 200, 256, 9), ("e", 240, 250, 40)):
        (tmp_path / name).mkdir()
        np.tile(np.arange(first, last), copies).astype(np.uint16).tofile(tmp_path / name / "0.bin")
    sources = [
        {"name": "a", "source": "tokens", "path": str(tmp_path / "a"), "weight": 2, "evalFraction": 0.1},
        {"name": "b", "source": "tokens", "path": str(tmp_path / "b"), "weight": 1},
        {"name": "c", "source": "tokens", "path": str(tmp_path / "c"), "weight": 1, "evalPath": str(tmp_path / "e")},
    ]
    data = {"sources": sources, "sequenceLength": 16, "vocabSize": 256}
    return make_config(1, replace=True, model={"name": "llama", "preset": "nano"}, data=data, **trainer)


def test_sources_are_mixed_by_weight_and_each_has_epochs_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = several(tmp_path, monkeypatch)
    samples = load_samples(config)
    batches = Batches(samples, config, ALONE)
    drawn = np.concatenate([batches.sampler.batch_windows(step, 0) for step in range(10_000 // 8)])
    for subset, share in zip(samples.subsets, (0.5, 0.25, 0.25), strict=True):
        own = [int(n) for n in drawn if n in subset.train]
        assert len(own) == pytest.approx(10_000 * share, abs=2)
        size = len(subset.train)
        for start in range(0, len(own) - size, size):
            assert sorted(own[start : start + size]) == list(subset.train)
        # Early and late samples come from each source alike.
        assert len([n for n in drawn[:1000] if n in subset.train]) == pytest.approx(1000 * share, abs=80)
    assert not [n for n in drawn if any(n in subset.held_out for subset in samples.subsets)]
    inputs = torch.cat([b.inputs for step in range(50) for b in batches.micro_batches(step)])
    names = np.array(["a", "b", "c"])[np.digitize(inputs.numpy(), [100, 200])]
    assert (names == names[:, :1]).all()


def test_held_out_samples_by_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = several(tmp_path, monkeypatch)
    samples = load_samples(config)
    batches = Batches(samples, config, ALONE)
    assert [(each.name, len(each.numbers)) for each in batches.evaluated] == [("a", 31), ("c", (400 - 1) // 16)]
    seen = torch.cat([batch.inputs[batch.targets[:, 0] >= 0] for batch in batches.eval_batches(batches.evaluated[1])])
    assert len(seen) == 24
    assert (int(seen.min()), int(seen.max())) == (240, 249)
    assert [(s["name"], s["tokens"], s["heldOut"]) for s in samples.sources] == [
        ("a", 5000, [281, 312]),
        ("b", 300, [18, 18]),
        ("c", 504, [31, 55]),
    ]


def test_the_order_of_a_mixture_never_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run depends on it."""
    config = several(tmp_path, monkeypatch, seed=7)
    batches = Batches(load_samples(config), config, ALONE)
    found = [batches.sampler.batch_windows(step, 0).tolist() for step in (0, 12_345)]
    assert found == MIXTURE


MIXTURE = [[317, 34, 204, 340, 169, 313, 231, 205], [207, 181, 349, 313, 183, 339, 312, 215]]


def test_a_source_without_samples_to_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = several(tmp_path, monkeypatch)
    (tmp_path / "b" / "0.bin").write_bytes(b"12" * 10)
    with pytest.raises(ConfigError, match=r"spec\.trainer\.data\.sources\[1\]\.path: .* gives 10 tokens"):
        load_samples(config)


def test_items_are_prepared_ahead_and_no_more() -> None:
    begun, produced = threading.Event(), []

    def items() -> Iterator[int]:
        for number in range(100):
            produced.append(number)
            yield number

    ahead = Prefetch(items(), 3, begun.set)
    assert not begun.is_set()
    assert next(ahead) == 0
    deadline = threading.Event()
    while len(produced) < 5:
        deadline.wait(0.01)
    deadline.wait(0.1)
    assert len(produced) == 5, "one was taken, three are ready, and one waits for a place"
    assert [next(ahead) for _ in range(10)] == list(range(1, 11))
    ahead.close()
    assert len(produced) < 20
    assert ahead._thread is not None
    assert not ahead._thread.is_alive()


def test_the_end_and_an_error_come_where_the_item_would() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    assert list(Prefetch(iter([1, 2]), 4)) == [1, 2]
    ahead = Prefetch(failing(), 4)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            next(ahead)
    ahead.close()
