"""Names shared by the launcher and the operator: environment variables, the launcher's port and its HTTP paths.

Mounted into images of users together with `launcher.py`: standard library of Python 3.8 only. The HTTP interface is

    GET  /readyz          200 while the ranks run, 503 once their attempt has ended; for the kubelet, without a token
    GET  /v1/state        the state of the pod (`trainyard.protocol.launcher_state.PodState`)
    POST /v1/attempt/N    end the running attempt and start attempt N; 202, or 409 if N is not newer
    POST /v1/release      exit with the exit code of the attempt that has ended; 202, or 409 if it still runs

All requests except /readyz need the job's token, as `Authorization: Bearer TOKEN`.
"""

import os

ENV_ATTEMPT = "TRAINYARD_ATTEMPT"
"""Number of the attempt that the processes of the pod take part in."""
ENV_TOKEN = "TRAINYARD_TOKEN"
"""Bearer token of the job. Without it the launcher serves no port and accepts no restart requests."""
ENV_LAUNCHER_PORT = "TRAINYARD_LAUNCHER_PORT"
"""TCP port of the launcher's HTTP interface; `LAUNCHER_PORT` if unset."""
ENV_TERMINATION_LOG = "TRAINYARD_TERMINATION_LOG"
"""Path of the container's termination message; `TERMINATION_LOG` if unset."""

TERMINATION_LOG = "/dev/termination-log"
LAUNCHER_PORT = 9401

READY_PATH = "/readyz"
STATE_PATH = "/v1/state"
ATTEMPT_PATH = "/v1/attempt/"
RELEASE_PATH = "/v1/release"


def port_number(variable: str, default: int) -> int:
    """Return the TCP port that an environment variable holds; the default if it is not set, or is no port.

    A Service of the namespace may have a name such that the kubelet sets the variable to an address of it
    (enableServiceLinks), for example to tcp://10.0.0.1:80.
    """
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) < 65536 else default


def attempt_number() -> int:
    """Return the number of the attempt that this process takes part in; 0 outside of a job."""
    text = os.environ.get(ENV_ATTEMPT, "")
    return int(text) if text.isdecimal() else 0
