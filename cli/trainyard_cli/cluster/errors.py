"""Errors of requests to a cluster: each has a one-line message and an exit code."""

import json

from trainyard_cli.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_NO_CLUSTER


class ClusterError(Exception):
    """A request to the cluster failed; the command ends with this message and exit code."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


class NotFoundError(ClusterError):
    """The object does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_BAD_INPUT)


class UnavailableError(ClusterError):
    """The server did not answer, or cannot serve the request now; the same request may succeed later."""


def error_from_response(status: int, body: str | bytes | None, action: str, *, proxied: bool = False) -> ClusterError:
    """Return the error that an HTTP response of the API server means to a user.

    Args:
        status: HTTP status code.
        body: text of the response: a Status object, or anything else.
        action: what was tried, as it reads after "cannot".
        proxied: the response may come from a program behind the API server.
    """
    message, reason = _parse_status(body)
    failed = f"cannot {action}"
    # A response without a Status object comes from the program behind the API server.
    if proxied and not message:
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body or ""
        return ClusterError(f"{failed}: {' '.join(['HTTP', str(status), *text.split()])[:200]}")
    # Without a Status object 404 means that the API path, that is the CRD, does not exist.
    if status == 404 and not message:
        fix = "install Trainyard on it, see docs/install.md"
        return ClusterError(f"{failed}: the cluster has no TrainingJob resource; {fix}", EXIT_NO_CLUSTER)
    if status == 404:
        return NotFoundError(f"{failed}: {message}")
    if status == 401:
        return ClusterError(f"{failed}: the cluster does not accept your credentials; log in again", EXIT_NO_CLUSTER)
    if status == 403:
        return ClusterError(f"{failed}: {message}; ask for that permission", EXIT_BAD_INPUT)
    if status == 409 and reason == "AlreadyExists":
        fix = "delete it first, or change it with kubectl apply"
        return ClusterError(f"{failed}: {message}; {fix}", EXIT_BAD_INPUT)
    if status == 409:
        return ClusterError(f"{failed}: {message}; it was changed in the meantime: check it, and try again")
    description = f"{failed}: {message or f'HTTP {status}'}"
    if status == 429 or status >= 500:
        return UnavailableError(description)
    return ClusterError(description, EXIT_BAD_INPUT if status in (400, 422) else EXIT_FAILED)


def _parse_status(body: str | bytes | None) -> tuple[str, str]:
    """Return message (in one line) and reason of a Status object; empty strings for any other body."""
    try:
        answer = json.loads(body or "")
        return " ".join(str(answer["message"]).split()), str(answer.get("reason", ""))
    except (ValueError, KeyError, TypeError):
        return "", ""
