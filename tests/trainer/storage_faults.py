"""Entry points of pods whose storage refuses some files."""

import errno
import os

from trainyard.protocol import constants
from trainyard.run_record import RunRecord
from trainyard_trainer.checkpoint import shared_folder, writable
from trainyard_trainer.checkpoint.run_folder import RunFolder
from trainyard_trainer.data.tokenizer import TokenizerFile
from trainyard_trainer.launcher import main as launcher_main


def own_volumes() -> None:
    """Each pod has a volume of its own at the path of the checkpoints, as on nodes without a shared one."""
    shared_folder.PATIENCE = 0.5
    os.environ[constants.ENV_CHECKPOINTS] += os.environ["PET_NODE_RANK"]
    launcher_main.main()


def impatient() -> None:
    """Do not wait for an object store."""
    writable.STORE_SECONDS = 0.0
    launcher_main.main()


def no_record_for(attempts: float) -> None:
    """Refuse to write the record of the run so many times."""
    write, refused = RunFolder.write, 0

    def faulty(self: RunFolder, record: RunRecord, tokenizer: TokenizerFile | None) -> None:
        nonlocal refused
        refused += 1
        if refused <= attempts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, record, tokenizer)

    RunFolder.write = faulty  # type: ignore[method-assign]
    launcher_main.main()


def no_record() -> None:
    no_record_for(float("inf"))


def no_record_at_first() -> None:
    """At the beginning, after the only checkpoint, and at the first try of the end."""
    no_record_for(3)
