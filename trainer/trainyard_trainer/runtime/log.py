"""Log lines: JSON for machines, plain text on a terminal."""

import logging
import os
import sys
from typing import Any

from trainyard.json_log import JsonFormatter
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
    handler.setFormatter(_Plain(rank) if sys.stdout.isatty() else JsonFormatter(job=job, attempt=attempt, rank=rank))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper() if rank == 0 else logging.WARNING)


def info(message: str, **fields: Any) -> None:
    """Log a message, with additional fields for the JSON format."""
    logger.info(message, extra={"fields": fields})


class _Plain(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__(f"%(asctime)s {rank} %(levelname)s %(message)s", datefmt="%H:%M:%S")
