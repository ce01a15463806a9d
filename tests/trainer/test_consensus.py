"""Requests of ranks to save or to stop."""

import pytest

from trainyard_trainer.checkpoint.consensus import Request, StepConsensus


@pytest.mark.parametrize("requests", [(Request.STOP, Request.SAVE), (Request.SAVE, Request.STOP)])
def test_a_stop_wins_over_a_save_in_any_order(requests: tuple[Request, ...]) -> None:
    """A save that falls due must not cancel the stop that SIGTERM has requested."""
    consensus = StepConsensus(group=None)
    for request in requests:
        consensus.request(request)
    assert [consensus.poll(), consensus.poll()] == [Request.STOP, Request.NOTHING]
