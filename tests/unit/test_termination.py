"""Termination messages: short enough for the kubelet, and safe to decode whatever they contain."""

import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.builders import make_progress
from trainyard.protocol.termination import MAX_BYTES, Hang, TerminationMessage

messages = st.builds(
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


@given(messages)
@example(TerminationMessage(message="x" * 100_000))
@example(TerminationMessage(message="😀" * 5000, exception="漢" * 300, progress=make_progress(5)))
@example(TerminationMessage(exception="E" * 100_000))
def test_a_message_fits_the_limit_of_the_kubelet_and_can_be_decoded(message: TerminationMessage) -> None:
    text = message.encode()
    assert len(text.encode()) <= MAX_BYTES
    decoded = TerminationMessage.decode(text)
    assert decoded is not None
    assert (decoded.rank, decoded.step, decoded.peer_lost) == (message.rank, message.step, message.peer_lost)
    assert decoded.hang == message.hang
    assert decoded.progress == message.progress


@given(messages)
def test_a_short_message_round_trips(message: TerminationMessage) -> None:
    assume(len(json.dumps(message.to_dict())) <= MAX_BYTES and len(message.exception or "") <= 200)
    assert TerminationMessage.decode(message.encode()) == message


@given(line=st.text("ab漢", min_size=50, max_size=90), times=st.integers(100, 1000))
def test_a_long_message_keeps_as_much_of_both_ends_as_fits(line: str, times: int) -> None:
    text = line * times
    encoded = TerminationMessage(rank=1, message=text).encode()
    decoded = TerminationMessage.decode(encoded)
    assert decoded is not None
    begin, _, end = decoded.message.partition(" ... ")
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
def test_other_texts_are_decoded_as_none(text: str) -> None:
    assert TerminationMessage.decode(text) is None


@given(st.text(max_size=200))
def test_decoding_never_raises(text: str) -> None:
    decoded = TerminationMessage.decode(text)
    assert decoded is None or isinstance(decoded, TerminationMessage)


def test_progress_that_is_not_finite_is_dropped() -> None:
    decoded = TerminationMessage.decode('{"progress": {"step": 3, "loss": NaN, "gradNorm": Infinity}}')
    assert decoded is not None
    assert decoded.progress is not None
    assert (decoded.progress.step, decoded.progress.loss, decoded.progress.grad_norm) == (3, None, None)
