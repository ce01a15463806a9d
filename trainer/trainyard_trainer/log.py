"""Log lines: JSON for machines, plain text on a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("trainyard")


def configure(job: str, attempt: int, rank: int) -> None:
    """Send the trainer's log to standard output: everything of rank 0, warnings and errors of the others."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Plain(rank) if sys.stdout.isatty() else _Json(job, attempt, rank))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def info(message: str, **fields: Any) -> None:
    """Log a message, with fields that stand beside it in JSON."""
    logger.info(message, extra={"fields": fields})


class _Json(logging.Formatter):
    def __init__(self, job: str, attempt: int, rank: int) -> None:
        super().__init__()
        self._who = {"job": job, "attempt": attempt, "rank": rank}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._who,
            **getattr(record, "fields", {}),
        }
        return json.dumps(line)


class _Plain(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__(f"%(asctime)s {rank} %(levelname)s %(message)s", datefmt="%H:%M:%S")
