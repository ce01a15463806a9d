"""Entries of pods whose export fails."""

import errno
import os

from trainyard_trainer.launcher.main import main
from trainyard_trainer.weights.export import Export


def full_volume() -> None:
    """Run a pod whose volume is full when the export is completed."""

    def commit(_: Export) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Export.commit = commit  # type: ignore[method-assign]
    main()
