"""Log lines in JSON: one object per line, the same for the operator and the trainer."""

import json
import logging
from datetime import UTC, datetime
from typing import Any


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: time, level, message, constant fields, and the record's own `fields`.

    Args:
        with_logger: whether to add the name of the logger.
        constant: fields of every line.
    """

    def __init__(self, *, with_logger: bool = False, **constant: Any) -> None:
        super().__init__()
        self._with_logger = with_logger
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON; a traceback becomes the field `exception`."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **({"logger": record.name} if self._with_logger else {}),
            "message": record.getMessage(),
            **self._constant,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
