"""The tool for test clusters, without a cluster."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import Profile
from tests.cluster.process import ProcessId


def test_import() -> None:
    assert Profile("node") is Profile.NODE


FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("started", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_first_thread_has_ended_still_holds_its_sockets() -> None:
    with subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            stat = Path(f"/proc/{process.pid}/stat")
            while stat.read_text().rpartition(") ")[2][0] != "Z":
                time.sleep(0.01)
            found = ProcessId.of(process.pid)
            assert found is not None
        finally:
            process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert stat.read_text().rpartition(") ")[2][0] == "Z"
        assert not found.alive()
