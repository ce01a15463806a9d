"""The benchmark works; how fast the trainer is, `make bench-trainer` says."""

import json
from pathlib import Path

import pytest

from tests.bench import bench_trainer


def test_the_benchmark_compares_the_trainer_with_a_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_trainer, "RESULT", tmp_path / "trainer.json")
    bench_trainer.main(["--quick"])
    rows = json.loads((tmp_path / "trainer.json").read_text())
    assert [row["case"] for row in rows] == [case.name for case in bench_trainer.QUICK]
    for row in rows:
        assert (row["unit"], row["reference"]) == ("tokens/s", "plain PyTorch loop")
        assert row["value"] > 0
        assert row["ratio"] == pytest.approx(row["value"] / row["reference_value"], rel=0.9)
    assert "middle half" in capsys.readouterr().out
