"""From every kind of source no sample is repeated or skipped, whatever happens to the run."""

import json
import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, Layout
from tests.trainer.pods import Pod, Starter, finish, wait_until
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.runtime.world import World

TEXTS = [f"document {number}: " + "so many words " * (number % 7 + 3) for number in range(150)]
BATCH = 4


def write(kind: str, folder: Path) -> dict[str, Any]:
    """Write data of a kind of source, and return its description."""
    rows = [{"text": text} for text in TEXTS]
    if kind == "text":
        for number, text in enumerate(TEXTS):
            (folder / f"{number:03}").write_text(text)
        return {"source": kind, "path": str(folder)}
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"source": kind, "path": str(folder)}
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet", row_group_size=20)
        return {"source": kind, "path": str(folder)}
    if kind == "huggingface":
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).save_to_disk(folder / "set")
        return {"source": kind, "path": str(folder / "set")}
    np.frombuffer("".join(TEXTS).encode(), np.uint8).astype(np.uint16).tofile(folder / "a.bin")
    return {"source": "tokens", "path": str(folder / "a.bin")}


def describe(kind: str, folder: Path) -> dict[str, Any]:
    if kind != "several":
        size = {"vocabSize": 256} if kind == "tokens" else {}
        return {**write(kind, folder), "evalFraction": 0.1, "sequenceLength": 16, **size}
    sources = []
    for name, weight in (("jsonl", 3), ("tokens", 1)):
        (folder / name).mkdir()
        sources.append({"name": name, "weight": weight, "evalFraction": 0.1, **write(name, folder / name)})
    return {"sources": sources, "sequenceLength": 16, "vocabSize": 256}


def configure(layout: Layout, data: dict[str, Any], steps: int, batch: int) -> RunConfig:
    return make_config(
        layout.processes,
        layout.parallelism,
        replace=True,
        checkpoint={"everySteps": 3, "async": False, "keep": 100},
        model={"name": "llama", "preset": "nano", "dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64},
        data=data,
        batch={"global": batch},
        stop={"steps": steps},
    )


def consumed(pod: Pod, ranks: int, last: int) -> list[int]:
    """Return the samples of all steps before `last` (from 0), in the order of the run."""
    steps: dict[int, list[int]] = defaultdict(list)
    for rank in range(ranks):
        for line in (pod.folder / f"steps-{rank}.jsonl").read_text().splitlines():
            step, numbers = json.loads(line)
            steps[step] += numbers
    return [number for step in sorted(steps) if 0 <= step < last for number in steps[step]]


KINDS = ("text", "jsonl", "tokens", "several")
EXTENDED = ("parquet", "huggingface")


@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.extended, id=kind) for kind in EXTENDED)]
)
def test_no_sample_is_repeated_or_skipped(start: Starter, tmp_path: Path, kind: str) -> None:
    """A run is killed, resumes with more ranks, then with another batch. jsonl represents the extended kinds."""
    (tmp_path / "data").mkdir()
    data = describe(kind, tmp_path / "data")
    env = {constants.ENV_CHECKPOINTS: str(tmp_path / "saved")}
    entry = "tests.trainer.faults:audit_at_once"
    (killed,) = start(configure(Layout(1, {}), data, 100_000, BATCH), 1, 1, entry, env)
    killed.wait_for_step(4)
    wait_until(lambda: bool(catalog.complete_steps(tmp_path / "saved")), 30)
    for rank in killed.ranks():
        os.kill(rank, signal.SIGKILL)
    assert finish([killed]) != [0]
    first = catalog.complete_steps(tmp_path / "saved")[0]
    wider = Layout(2, {"data": FSDP})
    (second,) = start(configure(wider, data, first + 5, BATCH), 1, 2, entry, env)
    assert finish([second]) == [0], second.stderr
    (third,) = start(configure(wider, data, first + 8, 2 * BATCH), 1, 2, entry, env)
    assert finish([third]) == [0], third.stderr
    found = consumed(killed, 1, first) + consumed(second, 2, first + 5) + consumed(third, 2, first + 8)
    expected = Batches(load_samples(config := configure(Layout(1, {}), data, 1, BATCH)), config, ALONE)
    total = BATCH * (first + 5) + 2 * BATCH * 3
    trained = found[:total]
    assert trained == expected.sampler.windows_at(np.arange(total)).tolist()
    epoch = min(expected.train_samples, total)
    if kind != "several":
        assert len(set(trained[:epoch])) == epoch
    assert not {n for n in trained if any(n in each.numbers for each in expected.evaluated)}


ALONE = World(0, 0, 1, 1, torch.device("cpu"))
