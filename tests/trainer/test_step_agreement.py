"""Requests of ranks to save or to stop."""

import pytest
import torch

from trainyard_trainer.runtime.step_agreement import Request, StepAgreement
from trainyard_trainer.runtime.world import World

GOOD = torch.tensor(False)


def make_agreement() -> StepAgreement:
    return StepAgreement(World(0, 0, 1, 1, torch.device("cpu")))


def exchange(agreement: StepAgreement) -> Request:
    assert not agreement.any_bad(GOOD)
    return Request(int(agreement.requested))


@pytest.mark.parametrize("requests", [(Request.STOP, Request.SAVE), (Request.SAVE, Request.STOP)])
def test_a_stop_wins_over_a_save_in_any_order(requests: tuple[Request, ...]) -> None:
    """A save that falls due must not cancel the stop that SIGTERM has requested."""
    agreement = make_agreement()
    for request in requests:
        agreement.request(request)
    assert exchange(agreement) is Request.STOP


def test_a_save_counts_once_and_a_stop_stays() -> None:
    """A rollback may discard the outcome of the step that carried it."""
    agreement = make_agreement()
    agreement.request(Request.SAVE)
    assert [exchange(agreement), exchange(agreement)] == [Request.SAVE, Request.NOTHING]
    agreement.request(Request.STOP)
    assert [exchange(agreement), exchange(agreement)] == [Request.STOP, Request.STOP]


def test_a_stop_that_a_signal_requests_at_any_moment_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler runs between two operations of the thread that trains, also inside of an exchange."""
    agreement = make_agreement()
    full = torch.full

    def interrupted(*arguments: object, **options: object) -> torch.Tensor:
        agreement.request(Request.STOP)
        return full(*arguments, **options)  # type: ignore[no-any-return, call-overload]

    agreement.request(Request.SAVE)
    monkeypatch.setattr(torch, "full", interrupted)
    assert exchange(agreement) is Request.SAVE
    monkeypatch.setattr(torch, "full", full)
    assert exchange(agreement) is Request.STOP


@pytest.mark.parametrize("bad", [False, True])
def test_a_flag_comes_back(bad: bool) -> None:
    assert bool(make_agreement().any_bad(torch.tensor(bad))) is bad
