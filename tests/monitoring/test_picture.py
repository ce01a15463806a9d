"""The picture of a dashboard in the documentation."""

from pathlib import Path
from typing import Any

import pytest

from trainyard_monitoring.job_dashboard import job_dashboard
from trainyard_monitoring.picture import Series, _InUnit, _legend, _state_colors, _units_on_the_right, draw, in_unit


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.934, "percentunit", "93.4%"),
        (0.0003, "sci", "3.0e-04"),
        (3.5 * 2**30, "bytes", "3.5 GiB"),
        (700 * 2**20, "bytes", "700 MiB"),
        (0.0125, "s", "12.5 ms"),
        (12.0, "s", "12 s"),
        (600.0, "s", "10.0 min"),
        (17_250.0, "short", "17.25 k"),
        (0.0, "none", "0"),
        (2.5e12, "flops", "2.5 TFLOP/s"),
        (-3.0, "none", "-3"),
    ],
)
def test_value_in_its_unit(value: float, unit: str, text: str) -> None:
    assert in_unit(value, unit) == text


@pytest.mark.parametrize(
    ("values", "unit", "texts"),
    [
        ([2.9e-4, 3e-4], "sci", ["2.9e-04", "3.0e-04"]),
        ([2.98e-4, 2.99e-4, 3e-4], "sci", ["2.98e-04", "2.99e-04", "3.00e-04"]),
        ([6.1 * 2**20, 6.2 * 2**20], "bytes", ["6.1 MiB", "6.2 MiB"]),
    ],
)
def test_ticks_have_enough_digits_to_differ(values: list[float], unit: str, texts: list[str]) -> None:
    assert _InUnit(unit).format_ticks(values) == texts


def test_legend_of_a_series() -> None:
    series = Series({"job_name": "a", "rank": "3", "kind": "resident"}, [0.0], [1.0])
    assert _legend("rank {{rank}} {{ kind }}", series) == "rank 3 resident"
    assert _legend("__auto", series) == "3, resident"


def panel_of_the_job(title: str) -> dict[str, Any]:
    (panel,) = [panel for panel in job_dashboard()["panels"] if panel["title"] == title]
    return dict(panel)


def test_conditions_have_their_own_colours() -> None:
    colours = _state_colors(panel_of_the_job("Conditions"))
    assert colours["Running"] == colours["Progressing"] == "#56a64b", "green"
    assert colours["Failed"] == "#e02f44", "red"
    assert len(set(colours.values())) == 7


def test_perplexity_has_an_axis_of_its_own() -> None:
    panel = panel_of_the_job("Evaluation")
    assert _units_on_the_right(panel) == {"perplexity": "short"}
    assert "perplexity" in panel["targets"][0]["expr"], "excluded from the left axis"


def test_dashboard_is_drawn(tmp_path: Path) -> None:
    def read(expression: str) -> list[Series]:
        return [] if "ALERTS" in expression else [Series({"condition": "Running"}, [100.0, 160.0], [1.0, 2.0])]

    draw(job_dashboard(), read, tmp_path / "job.png", start=100.0)
    assert (tmp_path / "job.png").read_bytes().startswith(b"\x89PNG")
