"""What can go wrong between a command and a cluster: one clear line, and an exit code."""

import json

from trainyard_cli.ending import EXIT_BAD_INPUT, EXIT_FAILED

EXIT_NO_CLUSTER = 3


class ClusterProblem(Exception):
    """What ends a command, in one line, with its exit code."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


class Missing(ClusterProblem):
    """There is no such object."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_BAD_INPUT)


class Unavailable(ClusterProblem):
    """No answer, or one that says that the server cannot just now: the same request may do later."""


def problem_of(status: int, body: str | bytes | None, what: str, *, passed_on: bool = False) -> ClusterProblem:
    """What an answer of the API server means to a user.

    Args:
        status: HTTP status.
        body: its text: a Status object, or anything.
        what: what was tried, as it stands after "cannot".
        passed_on: the answer may be that of a program behind the API server.
    """
    message, reason = _words(body)
    if passed_on and not message:
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body or ""
        return ClusterProblem(f"cannot {what}: {' '.join(['HTTP', str(status), *text.split()])[:200]}")
    if status == 404 and not message:
        fix = "install it: helm install trainyard charts/trainyard"
        return ClusterProblem(f"cannot {what}: the cluster has no TrainingJobs; {fix}", EXIT_NO_CLUSTER)
    if status == 404:
        return Missing(f"cannot {what}: {message}")
    if status == 401:
        return ClusterProblem(f"cannot {what}: the cluster does not know you; log in anew", EXIT_NO_CLUSTER)
    if status == 403:
        return ClusterProblem(f"cannot {what}: {message}; ask for that permission", EXIT_BAD_INPUT)
    if status == 409 and reason == "AlreadyExists":
        fix = "delete it first, or change it with kubectl apply"
        return ClusterProblem(f"cannot {what}: {message}; {fix}", EXIT_BAD_INPUT)
    if status == 409:
        return ClusterProblem(f"cannot {what}: {message}; it has just been changed: look at it, and try again")
    said = f"cannot {what}: {message or f'HTTP {status}'}"
    if status == 429 or status >= 500:
        return Unavailable(said)
    return ClusterProblem(said, EXIT_BAD_INPUT if status in (400, 422) else EXIT_FAILED)


def _words(body: str | bytes | None) -> tuple[str, str]:
    """Message and reason of a Status object, empty where the body is none; the message in one line."""
    try:
        answer = json.loads(body or "")
        return " ".join(str(answer["message"]).split()), str(answer.get("reason", ""))
    except (ValueError, KeyError, TypeError):
        return "", ""
