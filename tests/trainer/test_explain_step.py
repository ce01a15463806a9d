"""The samples that spoilt a step are named, whatever the layout of the run was, and can be left out."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, TOLERANCE, Layout, extended, pipe
from tests.trainer.pods import ENTRY, Pod, Starter, finish
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.data.places import Origin, origins
from trainyard_trainer.data.sampling import Sampler
from trainyard_trainer.replay.explain_step import deviations, explain_step
from trainyard_trainer.replay.saved_run import ReplayError

SAMPLES, LENGTH, BATCH, STEP = 10_000, 16, 32, 9
ALONE = Layout(1, {})
LAYOUTS = [Layout(2, {"pipeline": pipe(2)}), *extended([Layout(2, {}), Layout(2, {"data": FSDP})])]


class Data(NamedTuple):
    """Token ids of which three samples are garbage, all of them drawn in one step."""

    path: Path
    poisoned: list[int]


class Saved(NamedTuple):
    """A finished run."""

    folder: Path
    pod: Pod


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    ids = np.arange(SAMPLES * LENGTH + 1) % 13
    drawn = Sampler(SAMPLES, 0, BATCH, 1).batch_windows(STEP - 1, 0)
    poisoned = sorted(drawn[[3, 11, 30]].tolist())
    random = np.random.default_rng(0)
    for sample in poisoned:
        # The last token is also the first one of the next sample.
        ids[sample * LENGTH + 1 : (sample + 1) * LENGTH] = random.integers(100, 250, LENGTH - 1)
    path = tmp_path_factory.mktemp("data") / "tokens.bin"
    ids.astype(np.uint16).tofile(path)
    return Data(path, poisoned)


def configure(layout: Layout, path: Path, steps: int = 12, **trainer: Any) -> RunConfig:
    source = {"source": "tokens", "path": str(path), "vocabSize": 256, "sequenceLength": LENGTH}
    settings = {"batch": {"global": BATCH, "micro": 8}, "stop": {"steps": steps}, "logEverySteps": 1, **trainer}
    settings["data"] = source | settings.get("data", {})
    checkpoint = {"everySteps": 4, "keep": 100, "async": False}
    return make_config(layout.processes, layout.parallelism, checkpoint=checkpoint, **settings)


def train(start: Starter, folder: Path, layout: Layout, config: RunConfig, entry: str = ENTRY) -> Saved:
    pods = start(config, 1, layout.processes, entry, {constants.ENV_CHECKPOINTS: str(folder)})
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    return Saved(folder, pods[0])


@pytest.fixture(scope="module")
def saved(start: Starter, tmp_path_factory: pytest.TempPathFactory, data: Data) -> Saved:
    """A run on one process."""
    return train(start, tmp_path_factory.mktemp("run"), ALONE, configure(ALONE, data.path))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_three_poisoned_samples_among_ten_thousand_are_named_first(
    start: Starter, data: Data, tmp_path: Path, layout: Layout
) -> None:
    saved = train(start, tmp_path, layout, configure(layout, data.path))
    found = explain_step(saved.folder, STEP, top=3)
    assert sorted(figures.sample for figures in found.samples[:3]) == data.poisoned
    assert sorted(found.outliers) == data.poisoned
    assert len(found.samples) == BATCH
    assert found.restored_step == 8
    origin = found.samples[0].origin
    assert origin is not None
    first = found.samples[0].sample * LENGTH
    assert origin.places == (f"{data.path}, tokens {first} to {first + LENGTH - 1}",)
    report = next(r for r in saved.pod.reports if r["step"] == STEP)
    assert found.loss == pytest.approx(report["loss"], rel=TOLERANCE)
    assert found.grad_norm == pytest.approx(report["gradNorm"], rel=TOLERANCE)
    losses = [figures.loss for figures in found.samples]
    assert sum(filter(None, losses)) / BATCH == pytest.approx(report["loss"], rel=TOLERANCE)


@pytest.mark.parametrize("step", [1, 3])
def test_a_step_before_the_first_checkpoint_begins_with_the_initial_values(saved: Saved, step: int) -> None:
    found = explain_step(saved.folder, step)
    assert found.restored_step == 0
    assert found.outliers == []
    report = next(r for r in saved.pod.reports if r["step"] == step)
    assert found.loss == pytest.approx(report["loss"], rel=TOLERANCE)
    assert found.grad_norm == pytest.approx(report["gradNorm"], rel=TOLERANCE)


@pytest.mark.parametrize("layout", [ALONE, *extended([Layout(2, {"data": FSDP})])], ids=str)
def test_what_stands_out_is_left_out_of_the_next_attempt(
    start: Starter, saved: Saved, data: Data, tmp_path: Path, layout: Layout
) -> None:
    """The loss of the step is the mean over all other samples then, and the run says what has changed."""
    before = explain_step(saved.folder, STEP)
    folder = tmp_path / "run"
    shutil.copytree(saved.folder, folder)
    shutil.rmtree(folder / "step-00000012")
    exclude = {"exclude": {"samples": before.outliers}}
    again = train(start, folder, layout, configure(layout, data.path, data=exclude))
    losses = [figures.loss for figures in before.samples if figures.sample not in data.poisoned]
    report = next(r for r in again.pod.reports if r["step"] == STEP)
    assert report["loss"] == pytest.approx(sum(filter(None, losses)) / len(losses), rel=TOLERANCE)
    assert "spec.trainer.data.exclude.samples: not set -> [" in again.pod.stdout
    after = explain_step(folder, STEP)
    assert after.loss == pytest.approx(report["loss"], rel=TOLERANCE)
    assert {f.sample for f in after.samples} == {f.sample for f in before.samples} - set(data.poisoned)
    assert after.outliers == []


def test_a_value_that_is_not_finite_stands_out_and_leaves_the_others_comparable() -> None:
    found = deviations([1.0, math.nan, 1.1, 0.9, 5.0, math.inf])
    assert [math.isfinite(deviation) for deviation in found] == [True, False, True, True, True, False]
    assert found[4] > 20
    assert max(found[0], found[2], found[3]) < 2
    assert deviations([2.0] * 5) == [0.0] * 5
    assert not any(map(math.isfinite, deviations([math.nan, math.inf])))


@pytest.mark.parametrize(
    ("path", "step", "message"),
    [
        ("missing", 5, "is not a folder; name the folder of a run, which has run.json"),
        ("", 5, "has no run.json; name the folder of a run that has written checkpoints (spec.checkpoint)"),
        ("run", 0, "there is no step 0; steps are counted from 1"),
        ("parent", 4, "precedes step 4, and the run began with a checkpoint of another one; the oldest is of step 4"),
        (
            "private",
            20,
            "the run is private (spec.trainer.privacy): its samples, and what is added",
        ),
        ("damaged", STEP, "step-00000008/__0_0.distcp has a wrong checksum; choose a step that follows another"),
    ],
)
def test_a_run_that_cannot_be_replayed_is_one_message(
    saved: Saved, tmp_path: Path, path: str, step: int, message: str
) -> None:
    run = tmp_path / path
    if path in ("run", "parent", "private", "damaged"):
        shutil.copytree(saved.folder, run)
    if path == "parent":
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"parent": "0" * 32}))
    if path == "private":
        record = json.loads((run / "run.json").read_text())
        record["config"]["trainer"]["privacy"] = {"epsilon": 3}
        (run / "run.json").write_text(json.dumps(record))
    if path == "damaged":
        content = bytearray((run / "step-00000008" / "__0_0.distcp").read_bytes())
        content[len(content) // 2] ^= 1
        (run / "step-00000008" / "__0_0.distcp").write_bytes(content)
    with pytest.raises(ReplayError) as error:
        explain_step(run, step)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# --- where samples come from ------------------------------------------------------------------------------------------

TEXTS = ["the first document is short", "the second one has more words than the first", "", "and this is the last"]


def origin(tmp_path: Path, number: int, **data: Any) -> Origin:
    config = make_config(1, data={"path": str(tmp_path), "sequenceLength": LENGTH} | data)
    return origins(load_samples(config), [number], config)[0]


def write_rows(kind: str, path: Path) -> None:
    if kind == "jsonl":
        (path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        rows = pyarrow.Table.from_pylist([{"text": text} for text in TEXTS])
        parquet.write_table(rows, path / "a.parquet", row_group_size=3)
    else:
        for index, text in enumerate(TEXTS):
            (path / f"{index}.txt").write_text(text)


PLACES = {
    "jsonl": ["a.jsonl, line 1", "a.jsonl, line 2", "a.jsonl, line 4"],
    "parquet": ["a.parquet, row group 0, row 0", "a.parquet, row group 0, row 1", "a.parquet, row group 1, row 0"],
    "text": ["0.txt, byte 0", "1.txt, byte 0", "3.txt, byte 0"],
}


@pytest.mark.parametrize("kind", PLACES)
def test_samples_of_documents_are_named_by_file_and_line(tmp_path: Path, kind: str) -> None:
    """Sample 1 holds the end of the first document, and the beginning of the second one."""
    write_rows(kind, tmp_path)
    first, second, last = (f"{tmp_path}/{place}" for place in PLACES[kind])
    text = "".join(f"{text}\ufffd" for text in TEXTS if text)
    for number, places in ((0, (first,)), (1, (first, second)), (2, (second,)), (4, (second, last))):
        found = origin(tmp_path, number, source=kind)
        assert found.places == places, number
        assert found.text == text[number * LENGTH : (number + 1) * LENGTH]


def test_a_sample_of_several_sources_names_its_own(tmp_path: Path) -> None:
    sources = []
    for name in ("jsonl", "text"):
        (tmp_path / name).mkdir()
        write_rows(name, tmp_path / name)
        sources.append({"name": name, "source": name, "path": str(tmp_path / name)})
    config = make_config(
        1,
        replace=True,
        model={"name": "llama", "preset": "nano"},
        batch={"global": 8},
        stop={"steps": 1},
        data={"sources": sources, "sequenceLength": LENGTH},
    )
    samples = load_samples(config)
    second = samples.subsets[1].train.start
    found = origins(samples, [0, second], config)
    assert [(f.source, f.places) for f in found] == [
        ("jsonl", (f"{tmp_path}/jsonl/a.jsonl, line 1",)),
        ("text", (f"{tmp_path}/text/0.txt, byte 0",)),
    ]


def test_a_conversation_is_named_by_its_line(tmp_path: Path) -> None:
    talks = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": q.upper()}] for q in ("one", "two", "six")
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    found = origin(tmp_path, 1, source="chat", sequenceLength=128, field="messages")
    assert found.places == (f"{tmp_path}/a.jsonl, line 2",)
    assert "two" in str(found.text)
    assert "TWO" in str(found.text)


def test_a_row_of_a_table_is_named_as_it_was_given(tmp_path: Path) -> None:
    features = np.arange(40, dtype=np.float64).reshape(20, 2)
    np.savez(tmp_path / "table.npz", x=features, y=np.arange(20))
    table = {"source": "table", "path": str(tmp_path / "table.npz")}
    config = make_config(1, replace=True, model={"name": "mlp"}, data=table, batch={"global": 4}, stop={"steps": 1})
    samples = load_samples(config)
    for number, found in enumerate(origins(samples, range(20), config)):
        label = int(samples.read(np.array([number]), 0, 1).targets)
        assert (found.places, found.text) == ((f"{tmp_path}/table.npz, row {label}",), f"class {label}")
