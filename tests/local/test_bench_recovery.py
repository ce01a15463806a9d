"""The benchmark of recovery works, in a shortened form."""

import json
from pathlib import Path

import pytest

from tests.bench.recovery import bench


def test_the_benchmark_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "recovery.json"
    arguments = ["--rounds", "1", "--saves", "0", "--faults", "1", "--every", "3", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    bench.main()
    begun, stepped, goodput = json.loads(out.read_text())
    assert 0 < begun["value"] < stepped["value"] < 10, "the goal for a restart in place"
    assert stepped["ratio"] < 1
    assert 0 < goodput["ratio"] < 1
