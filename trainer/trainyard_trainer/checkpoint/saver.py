"""When a checkpoint is written, and which one a run resumes from."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import torch.distributed as dist

from trainyard.resource.checkpoint import CheckpointConfig
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.checkpoint.outcome import PendingSave, finished, first_line
from trainyard_trainer.checkpoint.run_folder import RunRecorder
from trainyard_trainer.checkpoint.storage import FAILURES, BackgroundSave, free_shared_memory, local_bytes, save
from trainyard_trainer.checkpoint.writer import CheckpointWriter
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.optim.state import Tensors
from trainyard_trainer.runtime import heartbeat, log, process_exit
from trainyard_trainer.runtime.errors import FinalCheckpointFailed
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.object_store import Location, ObjectPath
from trainyard_trainer.runtime.step_agreement import Request, StepAgreement
from trainyard_trainer.runtime.world import World

RETRY_SECONDS = 1.0
"""Pause before the first repetition of a final save that has failed; each further pause is twice as long."""
MAX_RETRY_SECONDS = 30.0
"""Longest pause between two attempts to save the final state."""
EXIT_SECONDS = 1.0
"""Part of the grace period that is left for the process to exit."""
REMOVAL_SECONDS = 5.0
"""How long the end of a run waits for old checkpoints to be removed; the next save removes what is left."""


class Checkpointable(Protocol):
    """State of a run that can be saved."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    def snapshot(self) -> tuple[Tensors, Manifest]:
        """Return the tensors of this rank, and the manifest of a checkpoint after the current step."""


RemoteSave = Callable[[Location, Manifest], None]
"""Has a parameter server write a checkpoint; raises OSError if it cannot."""


class Saver:
    """Writes the checkpoints of a run. All ranks call every method at the same point of the same step."""

    def __init__(
        self,
        config: CheckpointConfig,
        root: Location,
        world: World,
        state: Checkpointable,
        observers: list[Observer],
        agreement: StepAgreement,
        remote_save: RemoteSave | None,
    ) -> None:
        """Prepare to save.

        Args:
            config: when to save, and how many checkpoints to keep.
            root: folder of the checkpoints.
            world: the ranks.
            state: what is saved.
            observers: receive what happens to checkpoints.
            agreement: carries requests between the ranks.
            remote_save: set with a parameter server, which holds all tensors of the run.
        """
        self._config = config
        self._root = root
        self._world = world
        self._state = state
        self._observers = observers
        self._remote_save = remote_save
        self._agreement = agreement
        self._background: BackgroundSave | None = None
        if config.async_ and remote_save is None:
            assert world.control is not None
            self._background = BackgroundSave(world.device, world.control)
        self._background_used = False
        self._removal: threading.Thread | None = None
        """Removes old checkpoints, on rank 0."""
        self._staging: Future[None] | None = None
        """Done once the tensors of the save under way have been copied; they must not change before."""
        self._pending: PendingSave | None = None
        self._due = False
        """Whether a save waits for the next good step."""
        self._asked = False
        """Whether rank 0 has requested a save that has not begun."""
        self._last_time = time.monotonic()
        self._problem = ""
        """Why the last save has failed; empty if it has not."""
        self._told_to_stop: float | None = None
        """Monotonic time at which this rank was told to stop."""
        self.record: RunRecorder | None = None
        """Writes the record of the run, on rank 0."""
        self.stopping = False
        """Whether all ranks have agreed to save and stop before the training is complete."""
        self.step: int | None = None
        """Step of the newest complete checkpoint."""
        self.resumed_step: int | None = None
        """Step of the checkpoint that this attempt resumes from."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Ranks that save and load together; None if there is only one."""
        return self._world.control if self._world.size > 1 else None

    # --- resuming ------------------------------------------------------------------------------------------------

    def find_checkpoint(self) -> Location | None:
        """Return the newest intact checkpoint, the same on every rank, and remove incomplete ones.

        Raises:
            ConfigError: the newest one has been written by a newer version of the trainer.
        """
        self.resumed_step, damaged = self._newest(before_bad_steps=False)
        if self.resumed_step or damaged:
            for observer in self._observers:
                observer.checkpoint_resumed(self.resumed_step or 0, damaged)
        return self._folder(self.resumed_step)

    def find_rollback_target(self) -> Location | None:
        """Return the newest intact checkpoint, in the middle of a run, that was not written amid bad steps."""
        self._finish_pending()
        self._due = self._asked = False
        return self._folder(self._newest(before_bad_steps=True)[0])

    def _folder(self, step: int | None) -> Location | None:
        return None if step is None else catalog.complete_folder(self._root, step)

    def _newest(self, *, before_bad_steps: bool) -> tuple[int | None, int]:
        """Return the step of the newest intact checkpoint, and the number of damaged ones that are newer.

        `before_bad_steps`: pass over those that were written while the last steps were bad.
        """
        damaged = 0
        steps: list[list[int]] = [[]]
        if self._world.rank == 0:
            catalog.remove_partial(self._root)
            steps = [catalog.complete_steps(self._root)]
        if self._world.size > 1:
            dist.broadcast_object_list(steps, 0, group=self._world.control)
        for step in steps[0]:
            folder = catalog.complete_folder(self._root, step)
            problem = catalog.find_damage(folder, self._world.rank, self._world.size)
            if problem is not None:
                log.logger.warning("the checkpoint of step %d is damaged: %s", step, problem)
            if not self._world.all_true(problem is None):
                damaged += 1
            elif not (before_bad_steps and Manifest.read(folder).bad_steps):
                self.step = step
                return step, damaged
        return None, damaged

    # --- during training -----------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Have all ranks save and stop after one of the next steps; may be called from any thread of any rank."""
        self._told_to_stop = self._told_to_stop or time.monotonic()
        self._agreement.request(Request.STOP)

    @property
    def told_to_stop(self) -> bool:
        """Whether this rank was told to stop."""
        return self._told_to_stop is not None

    def before_update(self) -> None:
        """Wait until the tensors of the save under way have been copied, since the optimizer changes them next."""
        if self._staging is not None:
            heartbeat.beat(Phase.STAGING)
            self._wait_for_staging()

    def is_due(self, agreed: Request) -> bool:
        """Return whether `after_step` will save or stop, if the step just done was good; called once per step.

        `agreed`: the largest request of any rank in the step before, which is the same on each of them.
        """
        heartbeat.beat(Phase.CONSENSUS)
        self._check_pending()
        # spec.checkpoint.everySeconds: the clock of rank 0 decides, and its request reaches all ranks.
        seconds = self._config.every_seconds
        overdue = seconds is not None and time.monotonic() - self._last_time >= seconds
        if overdue and self._world.rank == 0 and not self._asked:
            self._asked = True
            self._agreement.request(Request.SAVE)
        self.stopping = agreed is Request.STOP
        # spec.checkpoint.everySteps: every rank counts for itself.
        every = self._config.every_steps
        self._due = self._due or agreed is Request.SAVE or (every is not None and self._state.step % every == 0)
        return self._due or self.stopping

    def after_step(self, *, applied: bool) -> bool:
        """Save if a checkpoint is due. Returns True if training must stop; everything is saved then.

        `applied`: whether the step has changed the parameters. After a bad step a save waits for the next good one,
        since a rollback needs a checkpoint from before the bad steps. Only the last save before a stop cannot wait.

        Raises:
            FinalCheckpointFailed: training must stop, and its state could not be saved.
        """
        if self.stopping:
            self.finish()
        elif self._due and applied:
            self._due = self._asked = False
            self._save(wait=False)
        return self.stopping

    def finish(self) -> None:
        """Save the last step unless it is saved already, and wait until all checkpoints are complete.

        A save that fails is repeated for as long as the grace period of the pod, since no later one can follow.

        Raises:
            FinalCheckpointFailed: no attempt has succeeded.
        """
        self._finish_pending()
        began, pause, attempts = time.monotonic(), RETRY_SECONDS, 0
        while True:
            saved = self._world.all_true(self.step == self._state.step)
            if saved and self._world.all_true(self.record is None or self.record.write()):
                break
            # The first attempt, or one more that can be complete in time on every rank.
            if attempts > 0:
                deadline = (self._told_to_stop or began) + process_exit.grace_seconds() - EXIT_SECONDS
                took = time.monotonic() - self._last_time
                if not self._world.all_true(time.monotonic() + pause + took < deadline):
                    problem = self._problem or (self.record.problem if self.record is not None else "")
                    raise FinalCheckpointFailed(self._explain_failure(attempts, problem), on_other_ranks=not problem)
                time.sleep(pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)
            attempts += 1
            if not saved:
                self._save(wait=True)
                self._finish_pending()
        if self._removal is not None:
            self._removal.join(REMOVAL_SECONDS)

    def _explain_failure(self, attempts: int, problem: str) -> str:
        """Return why the final state is not saved, and what to do."""
        newest = f"the newest checkpoint is of step {self.step}" if self.step else "there is no checkpoint"
        tries = "once" if attempts == 1 else f"{attempts} times"
        fix = "free or enlarge the volume of spec.checkpoint"
        if isinstance(self._root, ObjectPath):
            fix = "see that the object store of spec.checkpoint answers"
        lost = "the record of the run" if self.step == self._state.step else f"the state after step {self._state.step}"
        return f"{lost} could not be saved, tried {tries}: {problem or 'the log of rank 0 says why'}; {newest}; {fix}"

    # --- saving --------------------------------------------------------------------------------------------------

    def _save(self, *, wait: bool) -> None:
        self._finish_pending()  # one save at a time
        began = time.perf_counter()
        self._last_time = time.monotonic()
        result = self._start(*self._state.snapshot(), last=wait)
        self._pending = PendingSave(self._state.step, self._last_time, result)
        self._report_stall(began)
        self._check_pending()

    def _start(self, tensors: Tensors, manifest: Manifest, *, last: bool) -> Future[None]:
        """Begin to write a checkpoint. `last`: no other save follows."""
        if self._remote_save is not None:
            remote_save = self._remote_save if self._world.rank == 0 else lambda *_: None
            result = finished(lambda: remote_save(self._root, manifest))
            # All ranks wait for the storage, however long it takes: none continues and then seems to hang.
            self._world.all_true(True)
            return result
        writer = CheckpointWriter(self._root, manifest)
        # A background process is not worth its start if it would write one checkpoint only, for which the run waits.
        if last and not self._background_used:
            self._background = None
        elif not self._background_used:
            self._check_shared_memory(tensors)
        if self._background is None:
            return finished(lambda: save(writer, tensors, self.group))
        self._background_used = True
        response = self._background.start(writer, tensors)
        self._staging = response.staging_completion
        return response.upload_completion

    def _check_shared_memory(self, tensors: Tensors) -> None:
        """Save without a background process if there is no memory for the copy of the tensors that it would write."""
        free, needed = free_shared_memory(), local_bytes(tensors) * self._world.local_size
        if self._background is None or self._world.all_true(free is None or needed <= free):
            return
        self._background = None
        log.logger.warning(
            "training waits for each checkpoint: a copy of the state needs %d MB of /dev/shm, which has %d MB; enlarge "
            "/dev/shm, or set spec.checkpoint.async: false",
            needed / 1e6,
            (free or 0) / 1e6,
        )

    def _wait_for_staging(self) -> None:
        if self._staging is not None:
            began = time.perf_counter()
            self._staging.result()
            self._staging = None
            self._report_stall(began)

    def _finish_pending(self) -> None:
        """Wait until the save under way has ended."""
        heartbeat.beat(Phase.CHECKPOINT)
        self._wait_for_staging()
        if self._pending is not None:
            began = time.perf_counter()
            self._pending.result.exception()
            self._conclude(self._pending)
            self._report_stall(began)

    def _check_pending(self) -> None:
        """Conclude the save under way if it has ended."""
        if self._pending is not None and self._pending.result.done():
            self._conclude(self._pending)

    def _conclude(self, pending: PendingSave) -> None:
        """Report the outcome of a save, and remove old checkpoints.

        Raises:
            RuntimeError: the background process has died.
        """
        self._pending = None
        error = pending.result.exception()
        # Not an answer of the storage: the background process has died, and later saves would fail, too. Depending on
        # when it died this is a broken pipe, an end of file, or an error of torch's that says so.
        if error is not None and (isinstance(error, ConnectionError) or not isinstance(error, FAILURES)):
            raise RuntimeError(f"the process that writes checkpoints has failed: {first_line(error)}") from error
        self._problem = "" if error is None else f"{first_line(error)} ({catalog.free_space(self._root)})"
        if error is None:
            self.step = pending.step
        if self._world.rank != 0:
            return
        if error is not None:
            log.logger.error("the checkpoint of step %d could not be written: %s", pending.step, self._problem)
            catalog.remove_partial(self._root)
            for observer in self._observers:
                observer.checkpoint_failed(pending.step)
            return
        seconds = time.monotonic() - pending.began
        log.info(f"saved the checkpoint of step {pending.step} in {seconds:.1f} s", checkpointStep=pending.step)
        size = self._size(pending.step)
        for observer in self._observers:
            observer.checkpoint_saved(pending.step, seconds, size)
        self._removal = threading.Thread(target=self._remove_old)
        self._removal.start()

    def _remove_old(self) -> None:
        try:
            catalog.remove_old(self._root, self._config.keep)
        except OSError as error:
            log.logger.warning("old checkpoints could not be removed: %s", first_line(error))

    def _size(self, step: int) -> int | None:
        """Return the size of a checkpoint in bytes; None if the storage fails, which must not end the run."""
        try:
            return catalog.size(catalog.complete_folder(self._root, step))
        except (OSError, ValueError) as error:
            log.logger.warning("the size of the checkpoint of step %d is not known: %s", step, error)
            return None

    def _report_stall(self, began: float) -> None:
        seconds = time.perf_counter() - began
        for observer in self._observers:
            observer.checkpoint_stalled(seconds)
