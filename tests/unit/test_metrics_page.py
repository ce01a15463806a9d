"""Metrics pages of any program: what is usable counts, the rest is named, and none of them costs much time."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOW
from trainyard.base import POSITIVE_INT32
from trainyard.protocol.progress import Progress
from trainyard.protocol.worker_metrics import METRICS
from trainyard_operator.pod_input.metrics_page import MAX_LINE_BYTES, MAX_PAGE_BYTES, PageReader

GOOD = "trainyard_steps_total 50\ntrainyard_loss 2.5\n"


def read(page: str | bytes, piece_bytes: int = 65_536) -> tuple[Progress | None, str]:
    """Progress and problem of a page that arrives in pieces."""
    reader, text = PageReader(), page if isinstance(page, bytes) else page.encode("utf-8", "surrogatepass")
    for start in range(0, len(text), piece_bytes):
        if not reader.feed(text[start : start + piece_bytes]):
            break
    return reader.progress(attempt=1, now=NOW), reader.problem


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("<html>", 'the page is not in the Prometheus text format: it starts with "<"'),
        ('{"loss": 1}', "not in the Prometheus text format"),
        ("\x00\x01\x02", "not in the Prometheus text format"),
        ("trainyard_loss many\n", 'has a value that is not a number: "many"'),
        ("trainyard_loss\n", 'has a value that is not a number: ""'),
        ("trainyard_loss " + "9" * 900 + "\n", "has a value that is not a number"),
        ("trainyard_steps_total -1\n", f"trainyard_steps_total is -1, not a count from 0 to {POSITIVE_INT32}"),
        ("trainyard_steps_total 1e300\n", f"trainyard_steps_total is 1e+300, not a count from 0 to {POSITIVE_INT32}"),
        ("trainyard_planned_steps NaN\n", ""),
        ("trainyard_resumed_step 1e30\n", "trainyard_resumed_step is 1e+30"),
        (
            'trainyard_straggler_ratio{rank="inf"} 2\n',
            "trainyard_straggler_ratio has a label rank that must be a number",
        ),
        (
            'trainyard_straggler_ratio{rank="1e9"} 2\n',
            "trainyard_straggler_ratio has a label rank that must be a number",
        ),
        ('trainyard_straggler_ratio{rank="9999999999"} 2\n', "has a label rank that must be a number from 0 to"),
        ('trainyard_straggler_ratio{rank="-1"} 2\n', "has a label rank that must be a number"),
        ("trainyard_eval_" + "x" * 64 + " 1\n", 'must be 1 to 63 characters of a-z, A-Z, 0-9 and _, not "xxxx'),
        ("trainyard_eval_a-b 1\n", 'not "a-b"'),
        ("trainyard_eval_ 1\n", 'not ""'),
        ("trainyard_eval_" + "x" * 900_000 + " 1\n", f"a line has more than {MAX_LINE_BYTES} bytes"),
        ("".join(f"trainyard_eval_m{i} 1\n" for i in range(33)), "more than 32 metrics trainyard_eval_...; the others"),
        ("#" * 3_000_000, f"the page has more than {MAX_PAGE_BYTES} bytes; the rest was not read"),
        ("\n" * 3_000_000, f"the page has more than {MAX_PAGE_BYTES} bytes"),
        ("trainyard_x 1\n" * 30_000, "the page has more than 25000 lines that start with trainyard_"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_wrong_is_named_and_the_rest_of_the_page_counts(page: str, problem: str) -> None:
    progress, found = read(page + "\n" + GOOD if "format" in problem else GOOD + page)
    assert problem in found
    assert (found == "") == (problem == "")
    assert len(found) < 400
    assert progress is not None
    assert progress.loss == 2.5
    json.dumps(progress.to_dict(), allow_nan=False)


def test_of_several_problems_the_first_is_named_and_the_others_are_counted() -> None:
    _, problem = read("trainyard_loss a\ntrainyard_loss b\ntrainyard_loss c\n")
    assert problem == '"trainyard_loss" has a value that is not a number: "a" (and 2 more problems)'


def test_at_most_32_evaluation_metrics_are_kept() -> None:
    progress, _ = read(GOOD + "".join(f"trainyard_eval_m{i} 1\n" for i in range(100)))
    assert progress is not None
    assert progress.metrics is not None
    assert len(progress.metrics) == 32


def test_labels_may_contain_anything() -> None:
    page = 'trainyard_loss{a="x} 7 rank=\\"3\\" ",b="{"} 1.5 1700000000\ntrainyard_steps_total{c="}"} 3'
    progress, problem = read(page)
    assert problem == ""
    assert progress is not None
    assert (progress.loss, progress.step) == (1.5, 3)


def test_the_slowest_rank_is_kept() -> None:
    lines = [f'trainyard_straggler_ratio{{job_name="j",rank="{rank}"}} {ratio}\n' for rank, ratio in ((3, 2), (7, 3))]
    progress, _ = read(GOOD + "".join(lines))
    assert progress is not None
    assert (progress.straggler_rank, progress.straggler_ratio) == (7, 3.0)


def test_an_honest_page_of_many_ranks_is_read_to_its_end() -> None:
    """The page of a job with 16,000 ranks is longer than a megabyte, most of it about single ranks."""
    ranks = "".join(
        f'trainyard_rank_compute_seconds{{job_name="job",namespace="default",rank="{rank}"}} 0.0123456789\n'
        for rank in range(16_000)
    )
    progress, problem = read(GOOD + ranks + "trainyard_checkpoint_step 40\n")
    assert problem == ""
    assert progress is not None
    assert progress.checkpoint_step == 40


@pytest.mark.parametrize(
    "hostile",
    [
        'trainyard_loss{a="' + '\\"' * 1_000_000 + '"} 1\n',
        "trainyard_loss{" + ",".join(f'l{i}="x"' for i in range(100_000)) + "} 1\n",
        ('trainyard_loss{a="' + '\\"' * 400 + '"} 1\n') * 2000,
        ("trainyard_loss{" + "}" * 900 + " 1\n") * 2000,
        "trainyard_loss 1\n" * 200_000,
        "trainyard_eval_x{" * 100_000,
        "trainyard_" * 200_000,
        "\n" * 2_000_000,
        "# TYPE trainyard_loss gauge\n" * 80_000,
    ],
    ids=lambda text: text[:25],
)
@pytest.mark.parametrize("piece_bytes", [65_536, 4096])
def test_a_hostile_page_costs_little_time(hostile: str, piece_bytes: int) -> None:
    """Earlier 990 kB of it took 6.7 s, during which nothing else happened in the operator."""
    started = time.process_time()
    read(GOOD + hostile, piece_bytes)
    assert time.process_time() - started < 0.5


_names = st.sampled_from([metric.name for metric in METRICS]) | st.text("abz_19", max_size=70).map(
    lambda name: f"trainyard_eval_{name}"
)
_numbers = (
    st.floats().map(repr)
    | st.integers().map(str)
    | st.sampled_from(["inf", "-Inf", "NaN", "1e999", str(10**30), "0x1f", "1_000", "", "٣", "1 2 3"])
)
_labels = st.lists(
    st.tuples(st.sampled_from(["rank", "job_name", "a", "rank "]), st.text(max_size=8) | _numbers | st.just("9" * 400)),
    max_size=3,
).map(lambda pairs: ",".join(f'{name}="{value}"' for name, value in pairs))
_lines = st.builds(
    lambda name, labels, value: f"{name}{{{labels}}} {value}" if labels else f"{name} {value}",
    _names,
    _labels,
    _numbers,
)
_pages = st.lists(_lines | st.text(max_size=30), max_size=20).map("\n".join)


@given(page=_pages, piece_bytes=st.integers(1, 64))
def test_whatever_a_page_contains_the_result_can_be_stored(page: str, piece_bytes: int) -> None:
    progress, problem = read(page, piece_bytes)
    assert read(page) == (progress, problem), "it does not depend on the pieces"
    problem.encode()
    assert len(problem) < 400
    if progress is not None:
        assert Progress.model_validate_json(json.dumps(progress.to_dict(), allow_nan=False)) == progress
        assert all(len(name) <= 63 for name in progress.metrics or ())


def test_a_longer_page_is_read_less_often() -> None:
    for page, least, most in ((GOOD, 0, 0.1), ("#" * 1_000_000, 10, 20), ("trainyard_x 1\n" * 10_000, 10, 20)):
        reader = PageReader()
        reader.feed(page.encode())
        assert least <= reader.seconds_of_budget <= most


@given(st.binary(max_size=300))
def test_any_bytes_are_a_page(content: bytes) -> None:
    read(content)
