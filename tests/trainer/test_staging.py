"""A checkpoint in the background holds the state of one moment, also where the device lags behind the host.

No GPU is needed: a stream is a queue of operations, as CUDA's are, which run when something waits for them.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Self

import pytest
import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from trainyard_trainer.runtime.torch_internals import OrderedStager, shared_memory_stager


class Stream:
    """Work that was given to a device, and is done when another stream that waits for it is used."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], object]] = []
        self.awaited: list[Stream] = []
        self.synchronized = 0

    def wait_stream(self, other: "Stream") -> None:
        self.awaited.append(other)

    def run(self) -> None:
        for other in self.awaited:
            other.run()
        while self.queue:
            self.queue.pop(0)()

    def synchronize(self) -> None:
        self.run()
        self.synchronized += 1

    def __enter__(self) -> Self:
        self.run()
        return self

    def __exit__(self, *_: object) -> None:
        pass


def stage(kind: type[DefaultStager], monkeypatch: pytest.MonkeyPatch) -> tuple[float, Stream]:
    """Stage a tensor whose update is queued only, and return what was copied, and the stream of the copies."""
    compute, copies = Stream(), Stream()
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: compute)
    stager = kind(StagingOptions(False, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=False))
    # As on a GPU: copies that do not block, on a stream of their own.
    stager._config = StagingOptions(False, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=True)
    stager._staging_stream = copies  # type: ignore[assignment]
    parameter = torch.zeros(3)
    compute.queue.append(lambda: parameter.add_(1))
    staged = stager.stage({"parameter": parameter})
    assert isinstance(staged, Future)
    value = float(staged.result(30)["parameter"][0])
    stager.close()
    return value, copies


def test_the_copy_begins_after_the_update_that_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    value, copies = stage(OrderedStager, monkeypatch)
    assert value == 1
    # The future is done when the copies are, so that the next update cannot overtake them.
    assert copies.synchronized == 1


def test_a_stager_of_torch_alone_copies_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, torch orders the copy itself, and `OrderedStager` can go."""
    assert stage(DefaultStager, monkeypatch)[0] == 0


def test_checkpoints_are_written_with_it() -> None:
    stager = shared_memory_stager(cuda=False)
    assert isinstance(stager, OrderedStager)
    stager.close()
