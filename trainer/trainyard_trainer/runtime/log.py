"""Log lines: JSON for machines, plain text on a terminal."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

from trainyard.protocol import constants
from trainyard_trainer.runtime.errors import ConfigError

logger = logging.getLogger("trainyard")


LEVELS = ("debug", "info", "warning")


def configure(job: str, attempt: int, rank: int) -> None:
    """Log to standard output: rank 0 from the level TRAINYARD_LOG_LEVEL on, other ranks from warnings on.

    Raises:
        ConfigError: TRAINYARD_LOG_LEVEL is not a level.
    """
    level = os.environ.get(constants.ENV_LOG_LEVEL) or "info"
    if level not in LEVELS:
        raise ConfigError(f"{constants.ENV_LOG_LEVEL}: must be one of {', '.join(LEVELS)}, not {level}; correct it")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Plain(rank) if sys.stdout.isatty() else _Json(job, attempt, rank))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper() if rank == 0 else logging.WARNING)


def info(message: str, **fields: Any) -> None:
    """Log a message, with additional fields for the JSON format."""
    logger.info(message, extra={"fields": fields})


class _Json(logging.Formatter):
    def __init__(self, job: str, attempt: int, rank: int) -> None:
        super().__init__()
        self._identity = {"job": job, "attempt": attempt, "rank": rank}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._identity,
            **getattr(record, "fields", {}),
        }
        return json.dumps(line)


class _Plain(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__(f"%(asctime)s {rank} %(levelname)s %(message)s", datefmt="%H:%M:%S")
