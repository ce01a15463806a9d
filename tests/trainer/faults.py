"""Entry points of pods with one fault each, to prove that the trainer handles it, or that a test notices it."""

import errno
import gc
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed import distributed_c10d
from torch.distributed.checkpoint.staging import DefaultStager
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trainyard.mesh import AXES
from trainyard.protocol import constants
from trainyard_trainer import rank_process
from trainyard_trainer.checkpoint import saver
from trainyard_trainer.checkpoint.writer import CheckpointWriter
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.sampling import Sampler
from trainyard_trainer.data.windows import Windows
from trainyard_trainer.launcher import main as launcher_main
from trainyard_trainer.metrics import breakdown, stragglers
from trainyard_trainer.models.moe.model import LoadBalance, Moe
from trainyard_trainer.optim.update import LocalUpdate
from trainyard_trainer.parallel.expert import HostCopy
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.parallel.parallelize import named_parameters
from trainyard_trainer.progress_log import ProgressLog
from trainyard_trainer.runtime import heartbeat, world
from trainyard_trainer.runtime.device_settings import GarbageCollection
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer

ENV_WAIT_FOR = "TEST_WAIT_FOR"
"""Path of a folder, see `wait_around_checkpoint`."""


def sum_instead_of_mean() -> None:
    apply = LocalUpdate.apply_gradients

    def faulty(self: LocalUpdate, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        for parameter in self._parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(int(os.environ["WORLD_SIZE"]))
        return apply(self, learning_rate)

    LocalUpdate.apply_gradients = faulty  # type: ignore[method-assign]
    launcher_main.main()


def forget_accumulation() -> None:
    """Only the last micro-batch of a step counts."""
    accumulate = Trainer._forward_backward

    def faulty(self: Trainer) -> Any:
        micro_batches = self.batches.micro_batches
        self.batches.micro_batches = lambda step: reversed([list(micro_batches(step))[-1]] * 2)  # type: ignore
        try:
            return accumulate(self)
        finally:
            self.batches.micro_batches = micro_batches  # type: ignore[method-assign]

    Trainer._forward_backward = faulty  # type: ignore[method-assign]
    launcher_main.main()


def wrong_slice() -> None:
    """Every rank draws the samples of rank 0."""
    batch_windows = Sampler.batch_windows
    Sampler.batch_windows = lambda self, step, index, origin=0: batch_windows(self, step, 0, origin)  # type: ignore
    launcher_main.main()


def rank_0_waits() -> None:
    """The last rank takes 0.2 s longer for each step, and steps are traced as often as possible."""
    breakdown.FIRST, breakdown.BUDGET = 0.0, 1.0
    accumulate = Trainer._forward_backward

    def late(self: Trainer) -> Any:
        if self.world.size > 1 and self.world.rank == self.world.size - 1:
            time.sleep(0.2)
        return accumulate(self)

    Trainer._forward_backward = late  # type: ignore[method-assign]
    launcher_main.main()


def wait_around_checkpoint() -> None:
    """Each rank waits for a file of the folder `ENV_WAIT_FOR` before and after the first checkpoint.

    Before the last step that no checkpoint follows it waits for the file "before", and two steps later, when the
    checkpoint may still be written in the background, for the file "after".
    """
    accumulate = Trainer._forward_backward

    def waiting(self: Trainer) -> Any:
        assert self.config.checkpoint
        assert self.config.checkpoint.every_steps
        name = {-2: "before", 1: "after"}.get(self.step - self.config.checkpoint.every_steps)
        while name and not Path(os.environ[ENV_WAIT_FOR], name).exists():
            time.sleep(0.02)
        return accumulate(self)

    Trainer._forward_backward = waiting  # type: ignore[method-assign]
    launcher_main.main()


def average_expert_gradients() -> None:
    """Gradients of experts are averaged, as if the ranks that hold experts were replicas."""
    accumulate = Trainer._forward_backward

    def faulty(self: Trainer) -> Any:
        result = accumulate(self)
        for mixture in cast(Moe, self.parts[0]).mixtures():
            for parameter in mixture.experts.parameters():
                assert parameter.grad is not None
                parameter.grad.div_(self.mesh.sizes.expert)
        return result

    Trainer._forward_backward = faulty  # type: ignore[method-assign]
    launcher_main.main()


def balance_parts_of_sequences() -> None:
    """Each rank of a context group balances the load of its own positions only."""
    forward = LoadBalance.forward

    def faulty(self: LoadBalance, p_BTX: torch.Tensor, chosen_BTC: torch.Tensor) -> torch.Tensor:
        self.context = None
        return forward(self, p_BTX, chosen_BTC)

    LoadBalance.forward = faulty  # type: ignore[method-assign]
    launcher_main.main()


def count_waits_for_experts() -> None:
    """No fault: each rank prints how often it has waited for the counts of rows that its experts get."""
    run, wait = Trainer.run, HostCopy.wait
    waits: list[int] = []

    def counted(self: HostCopy) -> Any:
        waits.append(1)
        return wait(self)

    def printed(self: Trainer) -> None:
        run(self)
        os.write(1, f"{json.dumps({'waits': len(waits)})}\n".encode())

    HostCopy.wait = counted  # type: ignore[method-assign]
    Trainer.run = printed  # type: ignore
    launcher_main.main()


def print_loads() -> None:
    """No fault: rank 0 prints the load of the experts at each report."""
    reported = ProgressLog.reported

    def printed(self: ProgressLog, report: Any) -> None:
        reported(self, report)
        print(json.dumps({"loads": report.expert_loads}), flush=True)

    ProgressLog.reported = printed  # type: ignore[method-assign]
    launcher_main.main()


def no_preference() -> None:
    """Routers start with all experts alike, so that every token takes the same ones."""
    initial = Moe.initial
    Moe.initial = lambda self, name, shape: (  # type: ignore[method-assign]
        (0.0, 0.0) if name.endswith("router.weight") else initial(self, name, shape)
    )
    launcher_main.main()


def raise_in_rank_1() -> None:
    _in_rank_1_at_step_3(_raise)


def die_in_rank_1() -> None:
    _in_rank_1_at_step_3(lambda: os.kill(os.getpid(), signal.SIGKILL))


def nan_at_samples_24() -> None:
    """The gradient of the last rank is NaN in the step that begins with sample 24."""
    _spoil_last_rank(lambda drawn: drawn == 24)
    audit()


def nan_at_samples_32_to_55() -> None:
    _spoil_last_rank(lambda drawn: 32 <= drawn < 56)
    audit()


def nan_from_samples_32_on() -> None:
    _spoil_last_rank(lambda drawn: drawn >= 32)
    launcher_main.main()


def nan_loss_from_samples_32_on() -> None:
    """Loss and gradient of the last rank are NaN from sample 32 on, as after a fault in the forward pass."""
    _spoil_last_rank(lambda drawn: drawn >= 32, loss=True)
    launcher_main.main()


def spike_at_samples_200() -> None:
    _spoil_last_rank(lambda drawn: drawn == 200, 1e6)
    launcher_main.main()


def _spoil_last_rank(when: Callable[[int], bool], factor: float = math.nan, *, loss: bool = False) -> None:
    accumulate = Trainer._forward_backward

    def faulty(self: Trainer) -> Any:
        value, seconds = accumulate(self)
        if when(self.batches.samples_consumed(self.step)) and self.world.rank == self.world.size - 1:
            value = value * factor if loss else value
            for parameter in (p for part in self.parts for p in part.parameters()):
                assert parameter.grad is not None
                parameter.grad.mul_(factor)
        return value, seconds

    Trainer._forward_backward = faulty  # type: ignore[method-assign]


def slow_last_rank() -> None:
    """Its processor takes three times as long for everything, and it is measured all the time."""
    work, every = stragglers.ComputeProbe._work, 0.05
    stragglers.EVERY = every

    def faulty(self: stragglers.ComputeProbe) -> None:
        began = time.perf_counter()
        work(self)
        if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            time.sleep(0.02 + 4 * (time.perf_counter() - began))

    stragglers.ComputeProbe._work = faulty  # type: ignore[method-assign]
    launcher_main.main()


def skip_step_4() -> None:
    """The fourth step, which begins with sample 24, does not change the parameters: the reference for a bad step."""
    step = LocalUpdate.step
    made: list[int] = []

    def faulty(self: LocalUpdate, learning_rate: float) -> Any:
        made.append(1)
        if len(made) != 4:
            return step(self, learning_rate)
        self._optimizers.zero_grad()
        return torch.zeros(()), torch.tensor(True)

    LocalUpdate.step = faulty  # type: ignore[method-assign]
    audit()


def hang_in_rank_1() -> None:
    """Rank 1 sleeps in its fourth step, so that all others wait for it inside a collective."""
    _in_rank_1_at_step_3(lambda: time.sleep(600))


def hang_in_rank_1_with_flight_recorders() -> None:
    """Both ranks have the pipe and the file of NCCL's flight recorder, served by a thread as NCCL's monitor does."""
    join = World.init_process_group

    def faulty(self: World, **options: Any) -> None:
        pipe = Path(f"{os.environ['TORCH_NCCL_DEBUG_INFO_PIPE_FILE']}{self.rank}.pipe")
        os.mkfifo(pipe)
        descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

        def serve() -> None:
            while not os.read(descriptor, 128):
                time.sleep(0.1)
            Path(f"{os.environ['TORCH_FR_DUMP_TEMP_FILE']}{self.rank}").write_text(f"collectives of {self.rank}")

        threading.Thread(target=serve, daemon=True).start()
        join(self, **options)

    World.init_process_group = faulty  # type: ignore[method-assign]
    hang_in_rank_1()


def hang_in_rank_1_and_detect_it_late() -> None:
    """Rank 1 hangs; the pod of rank 0 detects that a second later than the other one."""
    start = heartbeat.start
    late = 1.0 if os.environ["PET_NODE_RANK"] == "0" else 0.0
    heartbeat.start = lambda step, timeout: start(step, (timeout or 0.0) + late)
    hang_in_rank_1()


def look_for_tensors_in_garbage() -> None:
    """Fail if tensors of earlier steps are held by reference cycles, which only a garbage collection removes."""

    def collect(_: object, step: int) -> None:
        if step == 5:
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            gc.set_debug(0)
            found = [o for o in gc.garbage if issubclass(type(o), torch.Tensor)]
            assert not found, "a step leaves tensors in reference cycles"

    GarbageCollection.after_step = collect  # type: ignore[method-assign, assignment]
    launcher_main.main()


def check_timeouts_of_the_mesh() -> None:
    """Fail if a group of the mesh has another timeout than the group of all ranks."""
    make = RankMesh.__init__

    def checked(self: RankMesh, *arguments: Any) -> None:
        make(self, *arguments)
        groups = [self.parameters.get_group(0), *(self.group(axis) for axis in AXES)]
        for group in groups:
            found = group._get_backend(torch.device("cpu")).options._timeout
            assert found == world.collective_timeout(None), found

    RankMesh.__init__ = checked  # type: ignore[method-assign, assignment]
    launcher_main.main()


def wait_in_rank_0() -> None:
    """Rank 0 waits before step 6 until there is a file named `go` beside its configuration."""
    accumulate = Trainer._forward_backward
    go = Path(os.environ[constants.ENV_CONFIG]).with_name("go")

    def faulty(self: Trainer) -> Any:
        while self.step == 5 and self.world.rank == 0 and not go.exists():
            time.sleep(0.02)
        return accumulate(self)

    Trainer._forward_backward = faulty  # type: ignore[method-assign]
    launcher_main.main()


def die_while_joining() -> None:
    join = World.init_process_group

    def faulty(self: World, **options: Any) -> None:
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        join(self, **options)

    World.init_process_group = faulty  # type: ignore[method-assign]
    launcher_main.main()


def second_pod_joins_late() -> None:
    join = World.init_process_group

    def faulty(self: World, **options: Any) -> None:
        if self.rank == 1:
            time.sleep(2)
        join(self, **options)

    World.init_process_group = faulty  # type: ignore[method-assign]
    launcher_main.main()


def second_pod_joins_later_than_a_collective_may_take() -> None:
    world.COLLECTIVE_TIMEOUT = timedelta(seconds=5)
    join = World.init_process_group

    def faulty(self: World, **options: Any) -> None:
        if self.rank == 1:
            time.sleep(8)
        join(self, **options)

    World.init_process_group = faulty  # type: ignore[method-assign]
    launcher_main.main()


def abort_in_rank_1_as_nccl_does() -> None:
    """The watchdog of rank 1 notices that another rank is gone, and aborts the process."""
    _in_rank_1_at_step_3(_abort)


def _abort() -> None:
    print("[rank1]:[E ProcessGroupNCCL.cpp:629] [Rank 1] Watchdog caught collective operation timeout", file=sys.stderr)
    sys.stderr.flush()
    os.abort()


def last_pod_never_comes() -> None:
    if os.environ["PET_NODE_RANK"] != "2":
        launcher_main.main()


def stop_while_importing() -> None:
    import trainyard_trainer

    class SlowImport(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "trainyard_trainer.rank_process":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)

    if sys.modules.pop("trainyard_trainer.rank_process", None) is not None:
        del trainyard_trainer.rank_process
    sys.meta_path.insert(0, SlowImport())
    launcher_main.main()


def count_threads_at_fork() -> None:
    fork = os.fork

    def counted() -> int:
        print("threads", len(list(Path("/proc/self/task").iterdir())), file=sys.stderr, flush=True)
        return fork()

    os.fork = counted
    launcher_main.main()


def second_pod_never_comes() -> None:
    if os.environ["PET_NODE_RANK"] == "0":
        launcher_main.main()


def different_text() -> None:
    Windows.fingerprint = property(lambda self: int(os.environ["RANK"]))  # type: ignore
    launcher_main.main()


def copy_slowly() -> None:
    """The copy of the tensors for a background checkpoint takes 0.3 s, far longer than a step."""
    stage = DefaultStager._stage

    def faulty(self: DefaultStager, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.3)
        return stage(self, *arguments, **options)

    DefaultStager._stage = faulty  # type: ignore[method-assign]
    launcher_main.main()


def disk_full_at_step_3() -> None:
    """The disk of rank 1 is full."""
    write_data = CheckpointWriter.write_data

    def faulty(self: CheckpointWriter, *arguments: Any) -> Any:
        if "00000003" in str(self.path) and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_data(self, *arguments)

    CheckpointWriter.write_data = faulty  # type: ignore
    launcher_main.main()


def disk_full_after_step_3() -> None:
    """The disk of the last rank is full from step 4 on."""
    _fill_disk(lambda attempts: True)


def disk_full_for_two_saves_after_step_3() -> None:
    """The disk of the last rank is full when it saves for the second and the third time."""
    _fill_disk(lambda attempts: attempts <= 2)


def _fill_disk(full: Callable[[int], bool]) -> None:
    """Let the last rank fail to write checkpoints after step 3 while `full` is true of its number of attempts."""
    write_data = CheckpointWriter.write_data
    attempts = 0

    def faulty(self: CheckpointWriter, *arguments: Any) -> Any:
        nonlocal attempts
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if last and "00000003" not in str(self.path):
            attempts += 1
            if full(attempts):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_data(self, *arguments)

    CheckpointWriter.write_data = faulty  # type: ignore
    launcher_main.main()


def slow_disk_of_rank_1() -> None:
    """Writing takes rank 1 longer than a collective of the training may take."""
    world.COLLECTIVE_TIMEOUT = timedelta(seconds=3)
    write_data = CheckpointWriter.write_data

    def faulty(self: CheckpointWriter, *arguments: Any) -> Any:
        if os.environ["RANK"] == "1" and "00000003" in str(self.path):
            time.sleep(5)
        return write_data(self, *arguments)

    CheckpointWriter.write_data = faulty  # type: ignore
    launcher_main.main()


def little_shared_memory() -> None:
    """The pod has 1 kB of shared memory."""
    saver.free_shared_memory = lambda: 1000  # type: ignore[attr-defined]
    launcher_main.main()


def _raise() -> None:
    raise ZeroDivisionError("a fault in the model\nwith a second line")


def _in_rank_1_at_step_3(act: Any) -> None:
    accumulate = Trainer._forward_backward

    def faulty(self: Trainer) -> Any:
        if self.step == 3 and self.world.rank == 1:
            act()
        return accumulate(self)

    Trainer._forward_backward = faulty  # type: ignore[method-assign]
    launcher_main.main()


def prepare_and_count() -> None:
    """Prepare the data and print how many tasks this process has encoded; do not train."""
    from trainyard_trainer.data import encoding, encoding_tasks, preparation
    from trainyard_trainer.data.loading import load_samples

    done: list[int] = []
    encode = encoding.encode

    def counted(*arguments: Any) -> None:
        done.append(1)
        encode(*arguments)

    encoding_tasks.encode = counted  # type: ignore[assignment, attr-defined]
    preparation.MIN_TASK = preparation.MAX_TASK = 100_000
    prepared = load_samples(rank_process.read_config())
    print(json.dumps({"fingerprint": prepared.fingerprint, "encoded": len(done)}), flush=True)


def mean_instead_of_sum() -> None:
    """Sharded gradients are averaged, the default of FSDP, although the loss is divided by the global batch already."""
    FSDPModule.set_gradient_divide_factor = lambda self, factor: None  # type: ignore[method-assign]
    FSDPModule.set_force_sum_reduction_for_comms = lambda self, enable: None  # type: ignore[method-assign]
    launcher_main.main()


def audit() -> None:
    """No fault: each rank writes the samples that it trains or evaluates on and its final parameters to files."""
    folder = Path(os.environ[constants.ENV_CONFIG]).parent
    to_device, run = Batches._to_device, Trainer.run
    seen: list[tuple[int, int, list[int]]] = []

    def noted(self: Batches, prepared: Any) -> Any:
        seen.append((self._part, self._parts, prepared.numbers.tolist()))
        return to_device(self, prepared)

    def audited(self: Trainer) -> None:
        run(self)
        rank, at = self.world.rank, self.mesh.at
        (folder / f"samples-{rank}.json").write_text(json.dumps(seen))
        whole = {name: _whole(parameter) for name, parameter in named_parameters(self.parts)}
        if not any(place for axis, place in at._asdict().items() if axis != "pipeline"):
            torch.save(whole, folder / f"parameters-{rank}.pt")

    Batches._to_device = noted  # type: ignore[method-assign]
    Trainer.run = audited  # type: ignore
    launcher_main.main()


def audit_at_once() -> None:
    """No fault: each rank writes the samples of each step to a file as soon as it gets them."""
    folder = Path(os.environ[constants.ENV_CONFIG]).parent
    to_device = Batches._to_device

    def noted(self: Batches, prepared: Any) -> Any:
        with (folder / f"steps-{os.environ['RANK']}.jsonl").open("a") as file:
            file.write(json.dumps([prepared.step, prepared.numbers.tolist()]) + "\n")
        return to_device(self, prepared)

    Batches._to_device = noted  # type: ignore[method-assign]
    launcher_main.main()


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    tensor = parameter.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def count_gloo_threads() -> None:
    """No fault: rank 0 prints how many process groups it has, and how many threads run their collectives."""
    run = Trainer.run

    def counted(self: Trainer) -> None:
        run(self)
        if self.world.rank == 0:
            names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
            groups = len(distributed_c10d._world.pg_map)
            print(json.dumps({"groups": groups, "threads": names.count("pt_gloo_runloop")}), flush=True)

    Trainer.run = counted  # type: ignore
    launcher_main.main()
