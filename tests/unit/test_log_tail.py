"""The end of a log: which failure it describes. The logs of torchrun are those of real runs, with other paths."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.protocol.log_tail import LogFailure, excerpt, find_failure, is_peer_loss
from trainyard_operator.pod_input.log_tail import read_log_tail

LOGS = Path(__file__).parent / "torchrun_logs"
KUBELET = 2048
"""Bytes of a log that the kubelet keeps as a termination message."""


def log(name: str) -> str:
    return (LOGS / f"{name}.txt").read_text()


BAD_SAMPLE = LogFailure("bad sample 17", "ValueError", 1)
SEE_LOG = "the log of the pod has more above torchrun's summary"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", BAD_SAMPLE),
        ("record", BAD_SAMPLE),
        ("kill", LogFailure("rank 1 was killed by SIGKILL", "SIGKILL", 1)),
        ("exit", LogFailure(f"rank 1 failed with exit code 42; {SEE_LOG}", None, 1)),
    ],
)
def test_torchrun_names_the_rank_and_its_log_the_exception(name: str, expected: LogFailure) -> None:
    assert find_failure(log(name)) == expected
    # What a launcher and the local backend pass on.
    assert find_failure(excerpt(log(name), 4096)) == expected
    assert find_failure(excerpt(log(name), KUBELET)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", LogFailure(f"rank 1 failed with exit code 1; {SEE_LOG}", None, 1)),
        ("record", BAD_SAMPLE),
        ("kill", LogFailure("rank 1 was killed by SIGKILL", "SIGKILL", 1)),
        ("exit", LogFailure(f"rank 1 failed with exit code 42; {SEE_LOG}", None, 1)),
    ],
)
def test_the_little_that_the_kubelet_keeps_of_torchrun_has_rank_and_exit_code(name: str, expected: LogFailure) -> None:
    assert find_failure(log(name)[-KUBELET:]) == expected


PYTHON = """step 1
Traceback (most recent call last):
  File "/app/boom.py", line 3, in <module>
    raise ValueError("bad sample 17")
ValueError: bad sample 17
"""
WATCHDOG = """[rank1]:[E1129 14:07:24.000 ProcessGroupNCCL.cpp:629] [Rank 1] Watchdog caught collective operation \
timeout: WorkNCCL(SeqNum=4, OpType=ALLREDUCE) ran for 600029 milliseconds before timing out.
terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [PG ID 0 PG GUID 0(default_pg) Rank 1] Process group watchdog thread terminated with exception: [Rank 1] \
Watchdog caught collective operation timeout
Aborted (core dumped)
"""
ILLEGAL = "CUDA error: an illegal memory access was encountered"
CUDA = f"""[rank3]:[E1129 14:07:24.000 ProcessGroupNCCL.cpp:1895] [PG ID 0 PG GUID 0(default_pg) Rank 3] Process group \
watchdog thread terminated with exception: {ILLEGAL}
"""
AT_EXIT = """Exception ignored in: <function Queue.__del__ at 0x7f>
Traceback (most recent call last):
  File "/app/queue.py", line 9, in __del__
TypeError: 'NoneType' object is not callable
nanobind: leaked 3 instances!
See https://nanobind.readthedocs.io/en/latest/faq.html
"""
JSON = '{"n": 1, "pad": "%s", "exc_info": "Traceback (most recent call last):\\n  x\\nKeyError: 1"}' % ("x" * 5000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PYTHON, LogFailure("bad sample 17", "ValueError")),
        (PYTHON + AT_EXIT, LogFailure("bad sample 17", "ValueError")),
        (PYTHON.replace("\n", "\r\n"), LogFailure("bad sample 17", "ValueError")),
        (PYTHON.replace("ValueError", "\x1b[1;31mValueError\x1b[0m"), LogFailure("bad sample 17", "ValueError")),
        (PYTHON.replace("ValueError: ", "app.data.BadSample: "), LogFailure("bad sample 17", "BadSample")),
        (PYTHON.replace("ValueError: bad sample 17", "KeyboardInterrupt"), LogFailure("", "KeyboardInterrupt")),
        ("torch.OutOfMemoryError: CUDA out of memory.", LogFailure("CUDA out of memory.", "OutOfMemoryError")),
        # One of several ranks whose output torchrun --tee merges.
        ("[default3]:[rank7]: KeyError: 'x'\n", LogFailure("'x'", "KeyError", 7)),
        # The exception that a program has caught, long before it fails for another reason.
        (PYTHON + "step\n" * 50 + "out of luck", LogFailure("out of luck")),
        ("training\nno data\n", LogFailure("no data")),
        ("no data\n======\n------\n\n", LogFailure("no data")),
        (AT_EXIT.splitlines()[-1], LogFailure("")),
        ('{"message": "disk full", "level": "error"}', LogFailure("disk full")),
        (JSON, LogFailure("1", "KeyError")),
        ('{"deep": ' + "[" * 100_000, LogFailure("[" * 1000)),
        ("", LogFailure("")),
        (CUDA, LogFailure(ILLEGAL, "SIGABRT", 3)),
    ],
)  # fmt: skip
def test_other_programs(text: str, expected: LogFailure) -> None:
    assert find_failure(text) == expected


def test_the_watchdog_of_nccl_is_an_effect_of_another_rank() -> None:
    failure = find_failure(WATCHDOG)
    assert (failure.exception, failure.rank, failure.peer_lost) == ("DistBackendError", 1, True)
    # Another rank is the cause.
    assert find_failure(WATCHDOG + PYTHON) == LogFailure("bad sample 17", "ValueError")
    assert find_failure(PYTHON + WATCHDOG) == LogFailure("bad sample 17", "ValueError")
    # A fault of the rank's own GPU is a cause.
    assert not find_failure(CUDA).peer_lost


MONITOR = """[rank2]:[E1129 14:07:24.000 ProcessGroupNCCL.cpp:1682] [PG ID 0 PG GUID 0(default_pg) Rank 2] Received a \
dump signal due to a collective timeout from  rank 1 and we will try our best to dump the debug info.
[rank2]:[F1129 14:07:25.000 ProcessGroupNCCL.cpp:1557] [PG ID 0 PG GUID 0(default_pg) Rank 2] [PG ID 0 PG GUID \
0(default_pg) Rank 2] Terminating the process after attempting to dump debug info, due to REASON.
"""


@pytest.mark.parametrize(("reason", "lost"), [("collective timeout or exception", True), ("watchdog hang", False)])
def test_the_monitor_of_nccl_ends_a_rank_because_of_another_one_or_of_a_stuck_watchdog(reason: str, lost: bool) -> None:
    failure = find_failure(MONITOR.replace("REASON", reason))
    assert (failure.exception, failure.rank, failure.peer_lost) == ("SIGABRT", 2, lost)


SOCKET = """[rank2]:[E1129 14:07:24.000 ProcessGroupNCCL.cpp:2068] [PG ID 0 PG GUID 0(default_pg) Rank 2] Process \
group watchdog thread terminated with exception: NCCL error: NCCLUtils.cpp:93, unhandled system error, NCCL version 2.27
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
LAST
"""


@pytest.mark.parametrize(
    ("last", "lost"),
    [
        ("socketProgressOpt: Call to recv from 10.0.0.7<41000> failed : Connection reset by peer", True),
        ("socketProgressOpt: Call to recv from 10.0.0.7<41000> failed : Connection timed out", True),
        ("NET/IB : Got completion from peer 10.0.0.7<39000> with error 12, opcode 0, len 0", True),
        ("Error while creating shared memory segment /dev/shm/nccl-x (size 9637892), error: No space left", False),
    ],
)
def test_what_nccl_says_last_decides_whether_another_rank_is_gone(last: str, lost: bool) -> None:
    failure = find_failure(SOCKET.replace("LAST", last))
    assert (failure.exception, failure.rank, failure.peer_lost) == ("SIGABRT", 2, lost)
    assert last in failure.message
    # As an exception of Python, with the rank that torch puts before each line.
    lines = SOCKET.replace("LAST", last).partition("exception: ")[2].splitlines()
    python = [f"[rank2]: {line}" for line in ("Traceback (most recent call last):", f"DistBackendError: {lines[0]}")]
    failure = find_failure("\n".join([*python, *(f"[rank2]: {line}" for line in lines[1:])]))
    assert (failure.exception, failure.rank, failure.peer_lost) == ("DistBackendError", 2, lost)


def test_the_stacks_of_threads_behind_it_do_not_hide_a_failure() -> None:
    thread = "Thread 0x00007f4efbfff6c0 (most recent call first):\n" + '  File "/app/train.py", line 3 in wait\n' * 20
    stacks = f"Fatal Python error: Aborted\n\n{thread * 5}\nExtension modules: torch._C (total: 31)\n"
    found = find_failure(WATCHDOG + stacks)
    assert found == find_failure(WATCHDOG)
    assert found.peer_lost
    assert find_failure(f"step 7\n{stacks}").message == "Fatal Python error: Aborted"


def test_a_rank_that_torchrun_has_ended_itself_is_not_the_cause() -> None:
    """Both have failed in the same second, and torchrun names the one that it has ended."""
    text = log("kill").replace("exitcode  : -9 (pid: 3707)  (SIGKILL)", "exitcode  : -15 (pid: 3707)  (SIGTERM)")
    text = text.replace("[rank0]: RuntimeError: [/__w", "[rank0]: ValueError: bad\n[rank0]: RuntimeError: [/__w")
    assert find_failure(text) == LogFailure("bad", "ValueError", 0)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.1]:50571", True),
        ("NCCL error: remote process exited or there was a network error, NCCL version 2.27", True),
        ("NCCL communicator was aborted on rank 3.", True),
        ("Terminating the process after attempting to dump debug info, due to collective timeout or exception.", True),
        ("Terminating the process after attempting to dump debug info, due to ProcessGroupNCCL watchdog hang.", False),
        (
            "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
            True,
        ),
        (
            "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.\n"
            "Last error:\nNET/IB : Got completion from peer 10.0.0.7<39000> with error 12, opcode 0",
            True,
        ),
        ("Some NCCL operations have failed: [Rank 1] Watchdog caught collective operation timeout", True),
        ("DistStoreError: wait timeout after 1800000ms, keys: /attempt 1/all arrived", True),
        (
            "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error\nncclSystemError: failed.\nLast error:\n"
            "socketProgressOpt: Call to recv from 10.0.0.7<41000> failed : Connection reset by peer",
            True,
        ),
        ("NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)", False),
        (ILLEGAL, False),
        ("ValueError: bad sample 17", False),
    ],
)
def test_errors_that_only_mean_that_a_peer_is_gone(text: str, lost: bool) -> None:
    assert is_peer_loss(text) is lost


@given(
    st.lists(
        st.one_of(
            st.text(max_size=80),
            st.sampled_from([*log("plain").splitlines(), *log("record").splitlines(), *CUDA.splitlines()]),
            st.sampled_from(
                ["[rank99999999999]: ", "[rank1]: ", "[default0]:", "Root Cause (first observed failure):"]
            ),
            st.sampled_from(["  exitcode  : -999999999 (", "  rank      : 7 (", "\x1b[", "a." * 600, "\udce9", "\x00"]),
        ),
        max_size=60,
    ),
    st.integers(min_value=300, max_value=4096),
)
def test_any_text_has_a_failure_that_a_status_can_hold(lines: list[str], size: int) -> None:
    text = "\n".join(lines)
    failure = read_log_tail(text)
    failure.message.encode()
    assert len(failure.message) <= 1000
    assert failure.rank is None or 0 <= failure.rank < 2**31
    assert len(excerpt(text, size).encode()) <= size


def test_the_work_is_linear_in_a_bounded_part_of_the_log() -> None:
    import time

    began = time.monotonic()
    for text in (
        "[rank1]: " * 1_000_000,
        "a." * 5_000_000,
        "x" * 10_000_000,
        "Error: \n" * 1_000_000,
        "[" * 10_000_000,
    ):
        find_failure(text)
    assert time.monotonic() - began < 30
