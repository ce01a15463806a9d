"""The last word of a worker: always short enough for the kubelet, and never a danger to who reads it."""

import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.builders import make_progress
from trainyard.protocol.termination import MAX_BYTES, Hang, TerminationMessage

words = st.builds(
    TerminationMessage,
    rank=st.none() | st.integers(0, 100_000),
    exception=st.none() | st.text(max_size=300),
    message=st.text(max_size=200)
    | st.text('é漢😀\\"\n\x00', min_size=300, max_size=9000)
    | st.text("ab ", max_size=20_000),
    step=st.none() | st.integers(0, 2**31 - 1),
    peer_lost=st.booleans(),
    hang=st.none() | st.just(Hang(no_stack_trace=True, phase=3, last_heartbeat=1795592248.473)),
    progress=st.none() | st.just(make_progress(10)),
)


@given(words)
@example(TerminationMessage(message="x" * 100_000))
@example(TerminationMessage(message="😀" * 5000, exception="漢" * 300, progress=make_progress(5)))
@example(TerminationMessage(exception="E" * 100_000))
def test_it_fits_what_the_kubelet_keeps_and_can_be_read_back(said: TerminationMessage) -> None:
    text = said.encode()
    assert len(text.encode()) <= MAX_BYTES
    heard = TerminationMessage.decode(text)
    assert heard is not None
    assert (heard.rank, heard.step, heard.peer_lost) == (said.rank, said.step, said.peer_lost)
    assert heard.hang == said.hang
    assert heard.progress == said.progress


@given(words)
def test_a_short_one_is_read_back_as_it_was_said(said: TerminationMessage) -> None:
    assume(len(json.dumps(said.to_dict())) <= MAX_BYTES and len(said.exception or "") <= 200)
    assert TerminationMessage.decode(said.encode()) == said


@given(line=st.text("ab漢", min_size=50, max_size=90), times=st.integers(100, 1000))
def test_a_long_one_keeps_its_beginning_and_its_end_and_wastes_no_room(line: str, times: int) -> None:
    text = line * times
    encoded = TerminationMessage(rank=1, message=text).encode()
    heard = TerminationMessage.decode(encoded)
    assert heard is not None
    begin, _, end = heard.message.partition(" ... ")
    assert begin
    assert text.startswith(begin)
    assert end
    assert text.endswith(end)
    assert len(encoded) > MAX_BYTES - 30


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback (most recent call last):",
        "{",
        "[]",
        "3",
        '"words"',
        "null",
        '{"colour": "red"}',
        '{"rank": "zero"}',
        '{"rank": -1}',
        '{"step": -5}',
        '{"rank": 1e400}',
        '{"step": 99999999999999999999999999}',
        '{"progress": {"step": 99999999999999999999999999}}',
        '{"step": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "\ud800",
    ],
)
def test_what_is_no_message_of_ours_is_none(text: str) -> None:
    assert TerminationMessage.decode(text) is None


@given(st.text(max_size=200))
def test_no_text_at_all_breaks_the_reader(text: str) -> None:
    heard = TerminationMessage.decode(text)
    assert heard is None or isinstance(heard, TerminationMessage)


def test_figures_that_are_not_numbers_do_not_pass() -> None:
    heard = TerminationMessage.decode('{"progress": {"step": 3, "loss": NaN, "gradNorm": Infinity}}')
    assert heard is not None
    assert heard.progress is not None
    assert (heard.progress.step, heard.progress.loss, heard.progress.grad_norm) == (3, None, None)
