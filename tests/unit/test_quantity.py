"""Kubernetes quantities of memory."""

import pytest

from trainyard.resource.quantity import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("2Gi", 2 * 2**30),
        ("1.5Gi", 1.5 * 2**30),
        (".5Ki", 512),
        ("80G", 80e9),
        ("500M", 500e6),
        ("64k", 64_000),
        ("1e9", 1e9),
        ("12E3", 12_000),
        ("1E", 1e18),
        ("2500m", 2),
    ],
)
def test_quantities_are_parsed_as_by_kubernetes(quantity: str | int, size: float) -> None:
    assert parse_bytes(quantity) == size


@pytest.mark.parametrize("quantity", ["", "2GB", "Gi", "-1", "1 Gi", "two", "1.2.3", "1Ki2"])
def test_an_invalid_quantity_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity of memory; write it like 2Gi"):
        parse_bytes(quantity)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "0.98Ki"),
        (1024, "1.00Ki"),
        (1536, "1.50Ki"),
        (80 * 2**30, "80.0Gi"),
        (2**60, "1.00Ei"),
    ],
)
def test_sizes_are_formatted_with_three_digits(size: int, text: str) -> None:
    assert format_bytes(size) == text
