"""Echoes: failures of a worker that only show that it lost a peer, so that the cause is elsewhere.

The built-in trainer says so itself. Of other programs the exception or the end of the log says it: torch.distributed,
its store, gloo and NCCL have messages of their own for a peer that is gone.
"""

import re

_LOST_PEER = re.compile(
    r"ncclRemoteError|remote process exited|NCCL communicator was aborted|communicator (was|has been) aborted"
    r"|watchdog (thread )?(caught|terminated)|collective operation timeout"
    r"|gloo/transport|gloo.*(connection (closed|reset|refused)|timed out)"
    r"|\bDist(Network|Store|Backend)Error\b|\bRendezvous(Connection|Timeout|Closed)Error\b"
    r"|TCPStore.*(connection|timed out|recv)|recvValue failed|failed to recv, got 0 bytes"
    r"|client socket has (timed out|failed)",
    re.IGNORECASE,
)
_NOT_A_PEER = re.compile(
    r"failed to listen|EADDRINUSE|address already in use|out of memory|invalid usage", re.IGNORECASE
)
"""Failures of the process itself that have the same exceptions."""
_NCCL_ABORT = re.compile(r"ProcessGroupNCCL|NCCL watchdog|Process group watchdog", re.IGNORECASE)
_SIGABRT = 128 + 6


def is_echo(summary: str, log: str, exit_code: int | None) -> bool:
    """Return whether a failure is only the echo of a peer's.

    Args:
        summary: reason and message of the failure, in one line.
        log: the end of the worker's log.
        exit_code: exit code of the worker.
    """
    # NCCL's watchdog ends the process with SIGABRT when a peer does not answer any more.
    if (exit_code == _SIGABRT or "SIGABRT" in summary) and _NCCL_ABORT.search(log):
        return True
    return _LOST_PEER.search(summary) is not None and _NOT_A_PEER.search(summary) is None
