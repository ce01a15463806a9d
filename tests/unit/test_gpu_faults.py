"""Faults of GPUs: their classes, the advice, and which device the next attempt gets."""

from typing import Any

import pytest

from tests.builders import make_progress, make_worker, termination_message, trainer_spec
from tests.support.story import Story, running
from trainyard.protocol.gpu_faults import CUDA_ERROR, FAULTS, HARDWARE, NCCL_ERROR, OUT_OF_MEMORY, find_gpu_fault
from trainyard.protocol.termination import Hang
from trainyard.resource.status import Failure, Phase, Reason
from trainyard_operator.lifecycle.actions import RestartInPlace
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.lifecycle.observation import WorkerPod

OOM = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.31 GiB is free."
)
ECC = "CUDA error: uncorrectable ECC error encountered"
ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"OutOfMemoryError: {OOM}", OUT_OF_MEMORY),
        ("AcceleratorError: CUDA error: out of memory", OUT_OF_MEMORY),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", OUT_OF_MEMORY),
        (
            "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error; ncclUnhandledCudaError: "
            "Call to CUDA function failed. Last error: Cuda failure 'out of memory'",
            OUT_OF_MEMORY,
        ),
        (f"AcceleratorError: {ECC}", HARDWARE),
        ("AcceleratorError: CUDA error: uncorrectable NVLink error detected during the execution", HARDWARE),
        ("CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error", HARDWARE),
        ("CUDA error: hardware stack error", HARDWARE),
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", HARDWARE),
        ("Unable to determine the device handle for GPU0000:63:00.0: GPU is lost.", HARDWARE),
        ("NVRM: Xid (PCI:0000:63:00): 31, pid=1234, name=python3", None),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", HARDWARE),
        ("RuntimeError: No CUDA-capable device is detected", HARDWARE),
        ("CUDA error: system not yet initialized", HARDWARE),
        (f"SIGABRT: rank 3 was killed by SIGABRT: {ILLEGAL}", CUDA_ERROR),
        ("AcceleratorError: CUDA error: device-side assert triggered", CUDA_ERROR),
        ("CUDA error: no kernel image is available for execution on the device", CUDA_ERROR),
        ("RuntimeError: CUDA driver version is insufficient for CUDA runtime version", CUDA_ERROR),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", CUDA_ERROR),
        ("DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error", NCCL_ERROR),
        ("ncclInvalidUsage: This usually reflects invalid usage of NCCL library.", NCCL_ERROR),
        ("ValueError: the loss is nan", None),
        ("OOMKilled: ", None),
        ("MemoryError: ", None),
    ],
)  # fmt: skip
def test_each_error_has_its_class(text: str, reason: str | None) -> None:
    fault = find_gpu_fault(text)
    assert (fault.reason if fault else None) == reason


def test_each_class_has_advice_of_one_line() -> None:
    for fault in FAULTS:
        assert len(fault.advice) > 40
        assert "\n" not in fault.advice


def failed(message: str, *, attempt: int = 1, pod_attempt: int = 1, index: int = 1, **fields: Any) -> WorkerPod:
    """A pod whose ranks have failed, and that awaits a restart in place."""
    exception = message.partition(":")[0] if message.startswith("SIG") else "AcceleratorError"
    words = termination_message(rank=index, exception=exception, message=message, step=7, **fields)
    return make_worker(
        index,
        attempt=pod_attempt,
        running_attempt=attempt,
        state="Failed",
        node=f"node-{index}",
        has_launcher=True,
        awaiting_restart=True,
        termination_message=words,
        exit_code=1,
    )


def other(index: int = 0, *, attempt: int = 1, pod_attempt: int = 1) -> WorkerPod:
    return make_worker(index, attempt=pod_attempt, running_attempt=attempt, node=f"node-{index}", has_launcher=True)


def training(**spec: Any) -> Story:
    return running(trainer=trainer_spec(), **spec)


def fails(story: Story, message: str, *, new_step: bool = False) -> Story:
    """Rank 1 fails in the current attempt, whose pods may be those of an earlier one."""
    status = story.status
    numbers = {"attempt": status.attempt, "pod_attempt": status.pod_attempt}
    if new_step:
        story.progress = make_progress(10 * status.attempt, attempt=status.attempt)
        story.settle()
    story.see(other(**numbers), failed(message, **numbers)).settle()
    return story


def restarts(story: Story) -> Story:
    """Let the next attempt run, in place or in new pods."""
    status = story.status
    numbers = {"attempt": status.attempt, "pod_attempt": status.pod_attempt}
    if status.pod_attempt < status.attempt:
        story.later(400).settle()
    else:
        story.see().later(400).settle()
    story.see(other(0, **numbers), other(1, **numbers)).settle()
    assert story.phase == Phase.RUNNING
    return story


def failure(story: Story) -> Failure:
    assert story.status.last_failure is not None
    return story.status.last_failure


def test_a_broken_gpu_is_never_used_again_and_is_not_the_programs_fault() -> None:
    story = fails(training(restartPolicy={"maxRestarts": 0}), ECC)
    status = story.status
    assert (status.attempt, status.pod_attempt_override, status.restarts_counted, status.disruptions) == (2, None, 0, 1)
    assert (status.faulty_nodes, status.avoided_nodes) == (("node-1",), ("node-1",))
    assert failure(story).reason == HARDWARE
    assert failure(story).message.startswith(f"{ECC}; the GPU or its NVLink is broken")
    assert "pod job-1-1 failed" in story.condition("Restarting").message
    # Other than after a refusal, the node stays avoided when the group runs again.
    restarts(story)
    assert story.status.avoided_nodes == ("node-1",)


def test_a_broken_gpu_is_recognized_where_the_watchdog_of_nccl_saw_it_first() -> None:
    story = fails(training(), f"SIGABRT: rank 1 was killed by SIGABRT: {ECC}")
    assert (failure(story).reason, story.status.faulty_nodes) == (HARDWARE, ("node-1",))


def test_faulty_nodes_are_used_again_if_the_group_cannot_be_scheduled_without_them() -> None:
    story = fails(training(), ECC)
    story.see().later(10).settle()
    full = SchedulingBlocker(Reason.UNSCHEDULABLE, "no node")
    story.all("Pending", blocker=full).settle()
    story.later(61).settle()
    assert (story.status.attempt, story.status.faulty_nodes) == (3, ())
    assert "without the nodes on which a GPU failed: node-1" in story.condition("Restarting").message


def test_an_error_of_cuda_is_restarted_in_place_once_on_the_same_device() -> None:
    story = fails(training(), ILLEGAL)
    assert (story.status.attempt, story.status.pod_attempt_override) == (2, 1)
    assert failure(story).reason == CUDA_ERROR
    story.later(400)
    assert any(isinstance(action, RestartInPlace) for action in story.settle().actions)
    restarts(story)
    fails(story, ILLEGAL)
    # The same pod, hence the same device: the program moves, and the node is avoided.
    status = story.status
    assert (status.attempt, status.pod_attempt_override, status.faulty_nodes) == (3, None, ("node-1",))
    assert status.restarts_counted == 2


def test_an_error_of_nccl_says_nothing_about_the_device() -> None:
    story = training()
    for _ in range(2):
        fails(story, "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error")
        assert failure(story).reason == NCCL_ERROR
        assert story.status.pod_attempt_override == 1
        restarts(story)
    assert story.status.faulty_nodes == ()


def test_a_job_that_runs_out_of_memory_twice_without_a_new_step_fails() -> None:
    story = restarts(fails(training(restartPolicy={"maxRestarts": 100}), OOM))
    assert (failure(story).reason, story.status.restarts_counted) == (OUT_OF_MEMORY, 1)
    assert "lower spec.trainer.batch.micro" in failure(story).message
    fails(story, OOM)
    condition = story.condition("Failed")
    assert (story.phase, condition.reason) == (Phase.FAILED, Reason.GPU_OUT_OF_MEMORY)
    assert condition.message.endswith("; so did the attempt before, and neither made a new step")


def test_a_job_that_runs_out_of_memory_now_and_then_is_restarted_up_to_the_limit() -> None:
    story = training(restartPolicy={"maxRestarts": 3})
    for number in range(1, 4):
        restarts(fails(story, OOM, new_step=True))
        assert story.status.restarts_counted == number
    fails(story, OOM, new_step=True)
    assert story.condition("Failed").reason == Reason.RESTART_LIMIT


def test_a_rule_of_the_user_comes_first() -> None:
    rules = [{"onReasons": ["GPUFault"], "action": "Fail"}]
    story = fails(training(restartPolicy={"rules": rules}), ECC)
    assert story.condition("Failed").reason == Reason.RESTART_RULE


@pytest.mark.parametrize(
    "fields",
    [{"peer_lost": True}, {"hang": Hang(phase=6, last_heartbeat=1.0)}],
    ids=["lost a peer", "hangs"],
)
def test_a_rank_that_only_quotes_the_error_of_another_one_has_no_broken_gpu(fields: dict[str, Any]) -> None:
    story = training()
    story.see(other(), failed(ECC, **fields)).later(200).settle()
    assert story.status.faulty_nodes == ()
    assert failure(story).reason != HARDWARE


def test_a_program_of_the_user_is_understood_by_the_end_of_its_log() -> None:
    story = running()
    log = f"Traceback (most recent call last):\n  File 'x'\ntorch.AcceleratorError: {ECC}\n"
    story.see(make_worker(0), make_worker(1, state="Failed", node="node-7", termination_message=log)).settle()
    assert (failure(story).reason, story.status.faulty_nodes) == (HARDWARE, ("node-7",))
