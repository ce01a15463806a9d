"""Rows of the result, and how they look on a terminal."""

import statistics
from typing import TypedDict


class Row(TypedDict):
    """One comparison. What could not be compared has no figures of the reference."""

    case: str
    value: float
    unit: str
    reference: str
    reference_value: float | None
    ratio: float | None


HEADER = f"{'case':<48}{'value':>9} {'unit':<9}{'reference':<34}{'value':>9}  ratio (middle half)"


def speed_row(case: str, values: list[float], reference: str, others: list[float] | None) -> tuple[Row, str]:
    """A row about speeds of many rounds or starts, and its line. The ratio is the median over them."""
    if others is None:
        row = make_row(case, statistics.median(values), "tokens/s", reference, None)
        return row, line(row)
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    row = make_row(case, statistics.median(values), "tokens/s", reference, statistics.median(others))
    row["ratio"] = ratio
    return row, f"{line(row)} ({low:.3f} to {high:.3f})"


def make_row(case: str, value: float, unit: str, reference: str, reference_value: float | None) -> Row:
    """A row from one value each; None if there is nothing to compare with."""
    ratio = None if reference_value is None else value / reference_value
    return Row(case=case, value=value, unit=unit, reference=reference, reference_value=reference_value, ratio=ratio)


def line(row: Row) -> str:
    """A row as text."""
    start = f"{row['case']:<48}{_number(row['value'])} {row['unit']:<9}{row['reference']:<34}"
    if not row["reference"]:
        return start.rstrip()
    if row["reference_value"] is None or row["ratio"] is None:
        return f"{start}not installed"
    return f"{start}{_number(row['reference_value'])}  {row['ratio']:.3f}"


def _number(value: float) -> str:
    return f"{value:>9,.0f}" if value >= 100 else f"{value:>9.3f}"
