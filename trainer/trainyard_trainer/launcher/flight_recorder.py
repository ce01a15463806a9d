"""The flight recorder of NCCL: which collectives the ranks of this pod had begun when they hung or failed.

NCCL's process group keeps the latest collectives of a rank in a ring buffer. It writes them to a file when a collective
times out, and when a byte arrives in a named pipe. The launcher uses the pipe when it detects a hang: a thread of torch
reads it, so the rank writes its file even where Python cannot run. Files are written to the disk of the pod, and then
copied to the checkpoint volume by a process of its own, since storage that hangs may be the cause.

The names are those of torch/csrc/distributed/c10d: ProcessGroupNCCL.hpp (DumpPipe) and FlightRecorder.hpp. The command
`torchfrtrace` reads the files. Free of torch.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from trainyard.protocol import constants

FOLDER = "flight-recorder"
"""Folder on the checkpoint volume."""
COLLECTIVES = 2000
"""Collectives that each rank keeps: several steps of a large model, and a few MB when they are written."""
DUMP_SECONDS = 5.0
"""Longest time for ranks to write their files: torch looks at its pipe once a second."""
COPY_SECONDS = 10.0
"""Longest time for copying the files to the checkpoint volume."""
_POLL_SECONDS = 0.1
_WRITE = os.O_WRONLY | os.O_NONBLOCK


class FlightRecorder:
    """Files and pipes of the flight recorders of this pod's ranks, for one attempt."""

    def __init__(self, attempt: int, local: Path, volume: Path | None) -> None:
        """`local`: a folder of this pod; `volume`: the job's folder on the checkpoint volume, None without one."""
        self._attempt = attempt
        self._local = local
        self._volume = volume
        self._copied = False

    @classmethod
    def of_attempt(cls, attempt: int) -> "FlightRecorder":
        """Return the recorder of an attempt in this pod."""
        volume = os.environ.get(constants.ENV_CHECKPOINTS)
        local = Path(tempfile.mkdtemp(prefix=f"trainyard-{FOLDER}-"))
        return cls(attempt, local, Path(volume, FOLDER) if volume else None)

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment variables with which ranks record and write. Those that a user has set stay."""
        prefix = str(self._local / f"attempt-{self._attempt}-rank-")
        defaults = {
            "TORCH_FR_BUFFER_SIZE": str(COLLECTIVES),
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_FR_DUMP_TEMP_FILE": prefix,
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": prefix,
            "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(self._local / "rank-"),
        }
        return {name: os.environ.get(name, value) for name, value in defaults.items()}

    def request(self, ranks: Iterable[int]) -> list[int]:
        """Have ranks write their files. Return those that can: a rank without NCCL has no pipe.

        `ranks`: global ranks of this pod that are alive.
        """
        asked = []
        for rank in ranks:
            try:
                # Without a reader this fails at once (ENXIO).
                pipe = os.open(f"{self.variables['TORCH_NCCL_DEBUG_INFO_PIPE_FILE']}{rank}.pipe", _WRITE)
                os.write(pipe, b"1")
                os.close(pipe)
            except OSError:
                continue
            asked.append(rank)
        return asked

    def wait(self, ranks: Iterable[int], deadline: float) -> None:
        """Wait until ranks have written their files, at most until a monotonic time."""
        sizes: dict[int, int] = {}
        waiting = list(ranks)
        while waiting and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            found = {rank: self._size(rank) for rank in waiting}
            # A file that has not grown since the last look is complete.
            waiting = [rank for rank, size in found.items() if not size or size != sizes.get(rank)]
            sizes = found

    def keep(self) -> None:
        """Copy the files to the checkpoint volume, and say where they are. Nothing happens if there are none."""
        files = sorted(self._local.glob("attempt-*"))
        if self._copied or not files:
            return
        self._copied = True
        if self._volume is None:
            print(
                f"the flight recorders of {len(files)} ranks are in {self._local} of this pod, which ends with it; "
                "spec.checkpoint keeps them",
                file=sys.stderr,
                flush=True,
            )
            return
        copied = _in_child(lambda: _copy(files, self._volume), COPY_SECONDS)
        outcome = "are in" if copied else "could not be copied to"
        print(
            f"the flight recorders of {len(files)} ranks {outcome} {self._volume}; torchfrtrace reads them",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Remove the files of this pod that were kept elsewhere, or are not wanted."""
        if self._volume is not None or not self._copied:
            shutil.rmtree(self._local, ignore_errors=True)

    def _size(self, rank: int) -> int:
        try:
            return Path(f"{self.variables['TORCH_FR_DUMP_TEMP_FILE']}{rank}").stat().st_size
        except OSError:
            return 0


def _copy(files: list[Path], folder: Path | None) -> None:
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        # A file that is complete appears at once, so that a reader never sees half of it.
        partial = folder / f".{file.name}"
        shutil.copyfile(file, partial)
        partial.rename(folder / file.name)


def _in_child(act: Callable[[], None], seconds: float) -> bool:
    """Run a function in a forked process, and return whether it has succeeded in time. One that hangs is left."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except OSError as error:
            print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    return False
