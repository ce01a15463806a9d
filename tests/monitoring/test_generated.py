"""Files written by `make generate`: up to date, only known metrics, complete descriptions, scalable times."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.promtool import ALERTS, RULES, promtool
from trainyard.protocol import worker_metrics
from trainyard_monitoring.__main__ import generated
from trainyard_monitoring.frame import timed_annotations
from trainyard_monitoring.metrics_table import with_metrics_table
from trainyard_monitoring.queries import dashboards, panel_queries
from trainyard_monitoring.rule_file import rule_file, rule_groups
from trainyard_monitoring.rules import Record
from trainyard_monitoring.timing import RUNBOOKS, TIMING, Timing
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.metrics import OperatorMetrics

REPOSITORY = Path(__file__).parents[2]
FILES = REPOSITORY / "charts" / "trainyard" / "files"
PAGES = REPOSITORY / "docs" / "runbooks"
DOCUMENT = REPOSITORY / "docs" / "monitoring.md"
RECORDS = [rule for group in rule_groups() for rule in group.rules if isinstance(rule, Record)]
QUERIES = panel_queries("ml", "llama")
EVALUATIONS = ("loss", "accuracy", "perplexity", "precision", "recall", "f1")


def names_of_workers() -> set[str]:
    names: set[str] = set()
    for metric in worker_metrics.METRICS:
        if metric.open_ended:
            names |= {metric.named(evaluation).name for evaluation in EVALUATIONS}
        elif metric.kind == "summary":
            names |= {f"{metric.name}_{part}" for part in ("sum", "count")}
        else:
            names.add(metric.name)
    return names


async def names_of_the_operator() -> set[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    families = OperatorMetrics(Cache(), WorkQueue[Key]()).registry.collect()
    return {f"{family.name}{suffix}" for family in families for suffix in suffixes[family.type]}


def metrics_in(expression: str) -> set[str]:
    """Return the names of series in an expression, without text in quotes."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:[a-z]+:)?trainyard_[a-z0-9_]+(?::[a-z0-9]+)?", bare))


@pytest.mark.parametrize("name", generated())
def test_the_chart_holds_the_generated_files(name: str) -> None:
    assert (FILES / name).read_text("utf-8") == generated()[name], "out of date: run `make generate`"


def test_the_chart_holds_no_other_files() -> None:
    held = {str(path.relative_to(FILES)) for path in FILES.rglob("*") if path.is_file()}
    assert held == {*generated(), "crd.yaml"}


async def test_every_metric_exists() -> None:
    existing = names_of_workers() | await names_of_the_operator()
    recorded = {record.name for record in RECORDS}
    expressions = [rule.expression for group in rule_groups() for rule in group.rules]
    expressions += [query.expression for query in QUERIES]
    used = set[str]().union(*(metrics_in(expression) for expression in expressions))
    assert len(used) > 40
    assert used <= existing | recorded
    assert recorded <= used, "a recorded series that nothing uses"


def test_the_document_holds_the_generated_table_of_worker_metrics() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert text == with_metrics_table(text), "out of date: run `make generate`"


def test_a_document_without_a_place_for_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="put them where the table belongs"):
        with_metrics_table("# Monitoring")


async def test_every_metric_is_documented_and_no_other() -> None:
    existing = names_of_workers() | await names_of_the_operator()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in existing} | existing
    documented = set(re.findall(r"`(trainyard_[a-z0-9_]+)", DOCUMENT.read_text("utf-8")))
    evaluations = {f"{worker_metrics.EVALUATION.name}{figure}" for figure in EVALUATIONS}
    assert documented - {worker_metrics.EVALUATION.name} <= families
    missing = {re.sub(r"_(bucket|sum|count)$", "", name) for name in existing - evaluations} - documented
    assert not missing
    assert worker_metrics.EVALUATION.name in documented


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(ALERTS)
    for name in ALERTS:
        text = (PAGES / f"{name}.md").read_text("utf-8")
        assert text.startswith(f"# {name}\n"), name
        for part in ("## What it means", "## Look first", "## Usual causes", "## Silence it"):
            assert part in text, (name, part)
        assert f"`{name}`" in DOCUMENT.read_text("utf-8")


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for board in dashboards().values():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield f"{board['title']}: {panel['title']}", panel


@pytest.mark.parametrize(("where", "panel"), list(panels()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_panel_has_description_unit_and_queries(where: str, panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    links = [link["url"] for link in panel.get("links") or ()]
    links += re.findall(rf"{re.escape(RUNBOOKS)}/\w+\.md", str(panel["options"]))
    assert all(url.removeprefix(f"{RUNBOOKS}/").removesuffix(".md") in ALERTS for url in links)
    if panel["type"] != "text":
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert all(target["expr"] for target in panel["targets"])


def test_panels_do_not_overlap() -> None:
    for board in dashboards().values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24, panel["title"]
            taken |= cells
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_alert_of_a_job_is_linked_from_a_panel() -> None:
    text = "".join(generated()[f"dashboards/{name}"] for name in dashboards())
    assert {name for name in ALERTS if f"/{name}.md" not in text} == set()


def test_promtool_parses_every_query(tmp_path: Path) -> None:
    """Each query is checked as a recording rule: Debian's promtool cannot check an expression without a server."""
    rules = [{"record": f"query:{number}", "expr": query.expression} for number, query in enumerate(QUERIES)]
    assert len(rules) > 80
    # No variable of Grafana is left; "$1" is a group of label_replace.
    assert "$" not in "".join(rule["expr"] for rule in rules).replace('"$1"', "")
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), "utf-8")
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_annotations_are_at_the_times_in_the_values_of_series() -> None:
    for mark in timed_annotations("x"):
        plain = mark.to_json()
        assert plain["useValueForTime"] is True
        assert str(plain["expr"]).endswith("timestamp_seconds{x} * 1000")


# --- times ---------------------------------------------------------------------------------------------------------

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def numbers_in(text: str) -> tuple[str, list[float]]:
    """Return the text with # for each number, and the numbers; times in seconds."""
    found = [float(n) * _UNITS.get(unit, 1) for n, unit in re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)(ms|[smhd])?\b", text)]
    return re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)(ms|[smhd])?\b", "#", text), found


def test_scaling_changes_only_times() -> None:
    (before, plain), (after, scaled) = numbers_in(rule_file()), numbers_in(rule_file(TIMING.scaled(0.01)))
    assert before == after
    times = set(dataclasses.asdict(TIMING).values())
    changed = {a for a, b in zip(plain, scaled, strict=True) if a != b}
    assert all(b == pytest.approx(a * 0.01) for a, b in zip(plain, scaled, strict=True) if a != b)
    assert changed == times


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Timing)])
def test_every_time_is_used(field: str) -> None:
    assert rule_file(dataclasses.replace(TIMING, **{field: 12_345})) != rule_file(), "the time is not used"


def test_alerts_are_tested_with_the_file_of_the_chart() -> None:
    assert RULES == FILES / "rules.yaml"
