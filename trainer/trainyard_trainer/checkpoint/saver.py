"""When a checkpoint is written, and what a run goes on from."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainyard.resource.checkpoint import CheckpointConfig
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.consensus import Agreement, Wish
from trainyard_trainer.checkpoint.storage import FAILURES, BackgroundSave, save
from trainyard_trainer.checkpoint.writer import CheckpointWriter
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.optim.state import Tensors
from trainyard_trainer.runtime import heartbeat, log
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World

REMOVAL_SECONDS = 5.0
"""How long the end of a run waits for old checkpoints to be gone; the next save removes what is left."""

Snapshot = Callable[[], tuple[Tensors, dict[str, Any]]]
"""The tensors of this rank, and what the manifest says besides."""
Send = Callable[[Path, int, dict[str, Any]], None]
"""Has a parameter server write a checkpoint; raises OSError."""


class Saver:
    """Writes the checkpoints of a run. All ranks call every method at the same point of the same step."""

    def __init__(
        self, config: CheckpointConfig, root: Path, world: World, metrics: MetricsExporter | None, send: Send | None
    ) -> None:
        """`send`: with a parameter server, which holds all that is to be saved."""
        self._config = config
        self._root = root
        self._world = world
        self._metrics = metrics
        self._send = send
        self._agreement = Agreement(self.group)
        self._background: BackgroundSave | None = None
        if config.async_ and send is None:
            assert world.control is not None
            self._background = BackgroundSave(world.device, world.control)
        self._started = False
        self._removal: threading.Thread | None = None
        """Of checkpoints that are too old, on rank 0."""
        self._staged: Future[None] | None = None
        self._pending: tuple[int, float, Future[None]] | None = None
        """Step, time of the start, and end of the save under way."""
        self._due = False
        """A save waits for a good step."""
        self._last: int | None = None
        self._last_time = time.monotonic()
        self.step: int | None = None
        """Step of the newest complete checkpoint, as rank 0 knows it."""
        self.resumed_step: int | None = None
        """Step of the checkpoint that this attempt continues from."""
        self.damaged = 0
        """Newer checkpoints that were passed over."""
        self.failures = 0
        """Checkpoints that could not be written, as rank 0 knows it."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that save and load together; None if there is only one."""
        return self._world.control if self._world.size > 1 else None

    # --- going on ------------------------------------------------------------------------------------------------

    def find(self) -> Path | None:
        """The newest checkpoint that is whole; the same on every rank. What never became complete is removed."""
        self.resumed_step, self.damaged = self._newest(good=False)
        if self._metrics is not None and (self.resumed_step or self.damaged):
            self._metrics.resumed(self.resumed_step or 0, self.damaged)
        return self._folder(self.resumed_step)

    def find_again(self) -> Path | None:
        """The newest good one in the middle of a run: whole, and not written while steps were bad."""
        self._settle()
        self._due = False
        return self._folder(self._newest(good=True)[0])

    def _folder(self, step: int | None) -> Path | None:
        return None if step is None else catalog.complete_folder(self._root, step)

    def _settle(self) -> None:
        """Wait until nothing is being written any more."""
        heartbeat.beat(Phase.CHECKPOINT)
        self._wait_for_copy()
        self._wait()

    def _newest(self, *, good: bool) -> tuple[int | None, int]:
        """Step of a checkpoint, and how many newer ones are damaged. `good`: no bad step came just before it."""
        damaged = 0
        found: list[list[int]] = [[]]
        if self._world.rank == 0:
            catalog.remove_partial(self._root)
            found = [catalog.complete_steps(self._root)]
        if self._world.size > 1:
            dist.broadcast_object_list(found, 0, group=self._world.control)
        for step in found[0]:
            folder = catalog.complete_folder(self._root, step)
            problem = catalog.find_damage(folder, self._world.rank, self._world.size)
            if problem is not None:
                log.logger.warning("the checkpoint of step %d is damaged: %s", step, problem)
            if not self._world.all_true(problem is None):
                damaged += 1
            elif not (good and catalog.read_manifest(folder).get("badSteps")):
                self._last = self.step = step
                return step, damaged
        return None, damaged

    # --- during the training -------------------------------------------------------------------------------------

    def ask_to_stop(self) -> None:
        """Let all ranks save and stop, soon; from any thread of any rank."""
        self._agreement.want(Wish.STOP)

    def before_update(self) -> None:
        """The tensors are about to change: wait until they have been copied."""
        if self._staged is not None:
            heartbeat.beat(Phase.STAGING)
            self._wait_for_copy()

    def _wait_for_copy(self) -> None:
        if self._staged is not None:
            began = time.perf_counter()
            self._staged.result()
            self._staged = None
            self._stalled(began)

    def after_step(self, step: int, snapshot: Snapshot, *, good: bool) -> bool:
        """Save if it is time. Returns True if the training is to stop, with all that it has done saved.

        `good`: the step was made. After one that was not, a save waits for the next good one: who goes back because of
        bad steps wants to come to where there were none. Only the last save before a stop cannot wait.
        """
        heartbeat.beat(Phase.CONSENSUS)
        self._poll()
        every, seconds = self._config.every_steps, self._config.every_seconds
        late = seconds is not None and time.monotonic() - self._last_time >= seconds
        if late and self._world.rank == 0 and not self._due:
            self._agreement.want(Wish.SAVE)
        agreed = self._agreement.settle()
        if agreed is Wish.STOP:
            self.finish(step, snapshot)
            return True
        self._due = self._due or agreed is Wish.SAVE or (every is not None and step % every == 0)
        if self._due and good:
            self._due = False
            self._save(step, snapshot, wait=False)
        return False

    def finish(self, step: int, snapshot: Snapshot) -> None:
        """No step follows: save what is not saved, and wait until it is."""
        self._settle()
        if step != self._last:
            self._save(step, snapshot, wait=True)
            self._settle()
        if self._removal is not None:
            self._removal.join(REMOVAL_SECONDS)

    # --- saving --------------------------------------------------------------------------------------------------

    def _save(self, step: int, snapshot: Snapshot, *, wait: bool) -> None:
        self._settle()  # one at a time
        began = time.perf_counter()
        self._last, self._last_time = step, time.monotonic()
        self._pending = (step, self._last_time, self._start(step, *snapshot(), alone=wait and not self._started))
        self._stalled(began)
        self._poll()

    def _start(self, step: int, tensors: Tensors, about: dict[str, Any], *, alone: bool) -> Future[None]:
        """Begin to write. `alone`: no other save will follow, and none has been; that is faster without a process."""
        if self._send is not None:
            send = self._send if self._world.rank == 0 else lambda *_: None
            outcome = _outcome(lambda: send(self._root, step, about))
            # However long the storage takes, all are known to wait for it: no other rank goes on and seems to hang.
            self._world.all_true(True)
            return outcome
        writer = CheckpointWriter(self._root, step, about)
        if self._background is None or alone:
            return _outcome(lambda: save(writer, tensors, self.group))
        self._started = True
        response = self._background.start(writer, tensors)
        self._staged = response.staging_completion
        return response.upload_completion

    def _poll(self) -> None:
        """See whether the save under way has ended."""
        if self._pending is not None and self._pending[2].done():
            self._conclude()

    def _wait(self) -> None:
        if self._pending is not None:
            began = time.perf_counter()
            self._pending[2].exception()
            self._conclude()
            self._stalled(began)

    def _conclude(self) -> None:
        assert self._pending is not None
        step, began, end = self._pending
        self._pending = None
        error = end.exception()
        if error is not None and (isinstance(error, ConnectionError) or not isinstance(error, FAILURES)):
            # That is no answer of the storage, and no other save would succeed. What it is depends on when the process
            # died: a broken pipe, the end of one, or torch's word that it is dead.
            raise RuntimeError(f"the process that writes checkpoints has failed: {_first_line(error)}") from error
        if self._world.rank != 0:
            return
        if error is not None:
            log.logger.error("the checkpoint of step %d could not be written: %s", step, _first_line(error))
            catalog.remove_partial(self._root)
            self.failures += 1
            if self._metrics is not None:
                self._metrics.save_failed()
            return
        self.step = step
        seconds = time.monotonic() - began
        log.info(f"checkpoint of step {step} is complete after {seconds:.1f} s", checkpointStep=step)
        if self._metrics is not None:
            self._metrics.saved(step, seconds, self._size(step))
        self._removal = threading.Thread(target=catalog.remove_old, args=(self._root, self._config.keep))
        self._removal.start()

    def _size(self, step: int) -> int | None:
        """Bytes of a checkpoint; not worth the run, should the storage have a bad moment."""
        try:
            return catalog.size(catalog.complete_folder(self._root, step))
        except (OSError, ValueError) as error:
            log.logger.warning("the size of the checkpoint of step %d is not known: %s", step, error)
            return None

    def _stalled(self, began: float) -> None:
        if self._metrics is not None:
            self._metrics.stalled(time.perf_counter() - began)


def _outcome(act: Callable[[], object]) -> Future[None]:
    """Do it now."""
    end: Future[None] = Future()
    try:
        act()
    except FAILURES as error:
        end.set_exception(error)
    else:
        end.set_result(None)
    return end


def _first_line(error: BaseException) -> str:
    """The cause, where torch wraps it: CheckpointException holds one for each rank that failed."""
    failures = getattr(error, "failures", {})
    cause = next(iter(failures.values()))[0] if failures else error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
