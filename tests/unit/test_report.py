"""The table that ends `trainyard run`."""

from rich.console import Console

from tests.builders import make_job
from trainyard_cli.report import status_table


def table(**goodput: object) -> str:
    status = {"startTime": "2030-01-01T12:00:00Z", "goodput": {"accountedAt": "2030-01-01T12:02:00Z", **goodput}}
    console = Console(width=100)
    with console.capture() as captured:
        console.print(status_table(make_job(status=status)))
    return captured.get()


def test_the_time_is_told_with_all_parts_that_are_not_empty() -> None:
    text = table(ratio=0.825, productiveSeconds=99, startupSeconds=20, checkpointSeconds=1)
    assert "goodput │ 82% (startup 20 s, checkpoint 1 s)" in " ".join(text.split())


def test_a_job_without_any_time_has_no_such_row() -> None:
    assert "goodput" not in table()
