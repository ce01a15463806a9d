"""Parts of the tests that not every machine can run."""

import pytest


def require(condition: object, what_is_missing: str) -> None:
    """Skip the test, with a line that says what is missing. With CI=true the skip counts as a failure (conftest)."""
    if not condition:
        pytest.skip(f"missing: {what_is_missing}")
