"""Log lines in JSON."""

import json
import logging
from typing import Any

from trainyard.json_log import JsonFormatter


def record(**extra: Any) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "trainyard", "levelno": logging.INFO, "levelname": "INFO", "msg": "step %d", "args": (4,), **extra}
    )


def test_a_line_has_time_level_message_constant_fields_and_those_of_the_record() -> None:
    formatter = JsonFormatter(job="ml", rank=3)
    line = json.loads(formatter.format(record(created=0.5, fields={"loss": 1.5})))
    assert line == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "info",
        "message": "step 4",
        "job": "ml",
        "rank": 3,
        "loss": 1.5,
    }


def test_the_name_of_the_logger_and_a_traceback_are_optional() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        problem = (type(error), error, error.__traceback__)
    line = json.loads(JsonFormatter(with_logger=True).format(record(exc_info=problem)))
    assert (line["logger"], line["exception"].splitlines()[-1]) == ("trainyard", "ValueError: no")
    assert json.loads(JsonFormatter().format(record())).keys() == {"time", "level", "message"}
