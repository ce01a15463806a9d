"""Text and numbers from pods: whatever they are, the result can be stored in a status."""

import json

from hypothesis import given
from hypothesis import strategies as st

from trainyard.base import POSITIVE_INT32
from trainyard_operator.pod_input.numbers import count_of, finite
from trainyard_operator.pod_input.text import clean_text

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=200)  # surrogates and control characters, too


@given(ANY_TEXT, st.integers(1, 100))
def test_clean_text_can_be_encoded_fits_and_has_one_line(text: str, limit: int) -> None:
    cleaned = clean_text(text, limit)
    cleaned.encode()
    assert len(cleaned) <= limit
    assert cleaned.splitlines() in ([], [cleaned])


def test_an_ordinary_message_stays_as_it_is() -> None:
    message = "RuntimeError: größer als 3 (文件 'data.npz' ist zu kurz)"
    assert clean_text(message, 100) == message


def test_escape_sequences_and_line_breaks_are_removed() -> None:
    assert clean_text("\x1b[31mred\x1b[0m\nnext\tcolumn\x00", 100) == "[31mred[0m next column"


def test_a_long_text_keeps_its_start_and_its_end() -> None:
    cleaned = clean_text("start " + "x" * 10_000_000 + " end", 40)
    assert cleaned.startswith("start ")
    assert cleaned.endswith(" end")
    assert len(cleaned) == 40


@given(st.floats() | st.integers())
def test_counts_and_finite_values_can_be_stored(value: float) -> None:
    count, number = count_of(value), finite(value) if isinstance(value, float) else None
    assert count is None or 0 <= count <= POSITIVE_INT32
    json.dumps(number, allow_nan=False)
