"""The benchmark works; how fast the trainer is, `make bench-trainer` says."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.bench.trainer import bench
from tests.bench.trainer.table import speed_row


# Extended: it starts each of the compared programs, which takes minutes on a busy machine.
@pytest.mark.extended
def test_the_benchmark_compares_the_trainer_with_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "RESULT", tmp_path / "trainer.json")
    bench.main(["--quick"])
    rows = json.loads((tmp_path / "trainer.json").read_text())
    text = capsys.readouterr().out
    missing = {name for name, module in FRAMEWORKS.items() if not find_spec(module)}
    assert {row["reference"] for row in rows if row["ratio"] is None} == missing
    assert text.count("not installed") == len(missing)
    assert {row["unit"] for row in rows} == {"tokens/s", "MiB"}
    assert len(rows) == len(text.splitlines()) - 1 == 9
    for row in rows:
        assert row["value"] > 0
        assert row["ratio"] is None or row["ratio"] > 0


def test_the_ratio_is_the_median_of_those_of_each_round() -> None:
    row, text = speed_row("case", [10.0, 40.0, 90.0], "other", [10.0, 20.0, 30.0])  # 1, 2, 3 times as fast
    assert (row["value"], row["reference_value"], row["ratio"]) == (40.0, 20.0, 2.0)
    assert text.endswith("2.000 (1.500 to 2.500)")


def test_only_the_wanted_cases_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "RESULT", tmp_path / "trainer.json")
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--quick", "--only", "no such case"])


FRAMEWORKS = {"Hugging Face Trainer": "transformers", "Lightning": "lightning"}
