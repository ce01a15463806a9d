"""The end of a program's log, which the kubelet gives as the termination message of a program that writes none."""

from dataclasses import replace

from trainyard.protocol.log_tail import LogFailure, find_failure
from trainyard_operator.pod_input.text import clean_text

_MAX_NAME = 200
_MAX_MESSAGE = 1000


def read_log_tail(text: str) -> LogFailure:
    """Return the failure that the end of a log describes, with texts that a status can hold."""
    failure = find_failure(text)
    exception = failure.exception and clean_text(failure.exception, _MAX_NAME)
    return replace(failure, message=clean_text(failure.message, _MAX_MESSAGE), exception=exception)
