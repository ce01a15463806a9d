"""spec.trainer.data.exclude: nothing of an excluded sample reaches the model, and all others keep their places."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.run_config import make_config
from tests.trainer.test_batches import windows_of
from trainyard.resource.exclusion import Exclusion
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.exclusion import Exclusions
from trainyard_trainer.data.samples import IGNORED, Batch, Subset
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World

WINDOWS = 12
SUBSETS = (Subset("a", 1.0, range(10), range(10, 12)), Subset("b", 1.0, range(12, 20), range(20, 20)))


def batches(tmp_path: Path, exclude: dict[str, Any] | None = None, rank: int = 0, size: int = 1) -> Batches:
    data = {} if exclude is None else {"exclude": exclude}
    config = make_config(size, batch={"global": 4, "micro": 2}, data=data)
    windows = windows_of(tmp_path / "numbers.bin", np.arange(16 * WINDOWS + 1))
    return Batches(windows, config, World(rank, rank, size, size, torch.device("cpu")))


def steps(found: Batches, count: int) -> list[Batch]:
    read = [batch for step in range(count) for batch in found.micro_batches(step)]
    found.close()
    return read


def test_an_excluded_sample_is_not_read_and_does_not_count_and_all_others_keep_their_places(tmp_path: Path) -> None:
    excluded = {3, 4, 11}
    (tmp_path / "more").write_text("4\n\n11  # twice the same page\n")
    before = steps(batches(tmp_path), 6)
    after = steps(batches(tmp_path, {"samples": [3], "file": str(tmp_path / "more")}), 6)
    seen = set()
    for old, new in zip(before, after, strict=True):
        for row in range(2):
            number = int(old.inputs[row, 0]) // 16
            if number not in excluded:
                assert torch.equal(old.inputs[row], new.inputs[row])
                assert torch.equal(old.targets[row], new.targets[row])
                continue
            seen.add(number)
            assert (new.targets[row] == IGNORED).all()
            assert int(new.inputs[row, 0]) // 16 == {3: 5, 4: 5, 11: 0}[number]
    assert seen == excluded


def test_ranks_leave_out_what_one_process_leaves_out(tmp_path: Path) -> None:
    exclude = {"samples": [0, 1, 7]}
    alone = batches(tmp_path, exclude)
    shares = [batches(tmp_path, exclude, rank, 2) for rank in range(2)]
    for step in range(6):
        numbers = [number for share in shares for number in share.counted_samples(step).tolist()]
        assert numbers == alone.counted_samples(step).tolist()
        assert not {0, 1, 7} & set(numbers)


@given(st.sets(st.integers(0, 9), max_size=9), st.sets(st.integers(12, 19), max_size=7))
def test_what_is_read_instead_is_of_the_same_source_and_is_not_excluded(first: set[int], second: set[int]) -> None:
    excluded = first | second
    found = Exclusions(Exclusion(samples=tuple(excluded)) if excluded else None, SUBSETS)
    numbers = np.array([*range(10), *range(12, 20)])
    replaced, which = found.replace(numbers)
    assert set(numbers[which].tolist()) == excluded
    assert not set(replaced.tolist()) & excluded
    assert ((replaced < 12) == (numbers < 12)).all()
    assert (replaced[~which] == numbers[~which]).all()


@pytest.mark.parametrize(
    ("samples", "text", "message"),
    [
        ((10,), None, "exclude: 10 is not the number of a sample to train on, which are 0 to 9, 12 to 19; remove it"),
        ((25,), None, "exclude: 25 is not the number of a sample"),
        (tuple(range(10)), None, "exclude: leaves none of the 10 samples of a to train on; name fewer"),
        ((), "1\n2x\n", "exclude.file: FILE, line 2: '2x' is not the number of a sample; write one number a line"),
        ((), b"\xff", "exclude.file: FILE cannot be read in the worker (it is not text); correct the path"),
        ((), None, "exclude.file: FILE cannot be read in the worker (No such file or directory); correct the path"),
    ],
)
def test_a_wrong_number_is_one_message(
    tmp_path: Path, samples: tuple[int, ...], text: str | bytes | None, message: str
) -> None:
    path = tmp_path / "excluded"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as error:
        Exclusions(Exclusion(samples=samples, file=None if samples else str(path)), SUBSETS)
    assert message.replace("FILE", str(path)) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_exclusion_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"spec\.trainer\.data\.exclude: needs samples or a file"):
        make_config(1, data={"exclude": {}})
