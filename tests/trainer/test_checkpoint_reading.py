"""Reading a checkpoint on any layout takes little memory, and opens each of its files once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save as torch_save

from trainyard_trainer.checkpoint.storage import load

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ROWS, COUNT = 4 << 20, 4
LARGEST = 4 * ROWS
"""Bytes of each tensor."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one process with some tensors of 16 MiB."""
    path = tmp_path_factory.mktemp("checkpoint")
    torch_save({f"t{i}": torch.full((ROWS,), float(i)) for i in range(COUNT)}, checkpoint_id=path, no_dist=True)
    return path


def memory(name: str) -> int:
    """Return a line of /proc/self/status in bytes: VmRSS, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def test_one_saved_tensor_is_held_besides_those_that_are_filled(folder: Path) -> None:
    filled = {f"t{i}": torch.ones(ROWS) for i in range(COUNT)}
    load(folder, filled, None)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = memory("VmRSS")
    load(folder, filled, None)
    assert memory("VmHWM") - before < 1.3 * LARGEST
    for number, tensor in enumerate(filled.values()):
        assert torch.equal(tensor, torch.full((ROWS,), float(number)))


def test_each_file_is_opened_once_to_read_its_tensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an object store each opening is a request."""
    opened: Counter[str] = Counter()
    original = Path.open

    def counting(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened[self.name] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counting)
    load(folder, {f"t{i}": torch.ones(ROWS) for i in range(COUNT)}, None)
    assert {name: count for name, count in opened.items() if name.endswith(".distcp")} == {"__0_0.distcp": 1}
