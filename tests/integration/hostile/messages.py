"""Jobs whose launcher or termination message is hostile."""

import json

from tests.integration.hostile import servers
from tests.integration.hostile.kind import ELSEWHERE, ELSEWHERE_PORT, Hostile, fails, loses_readiness
from tests.integration.hostile.servers import Handler, page

_DEEP = "[" * 4000
_NOT_READY = '^workers .*"ready": 0|launcher'
"""Without an answer that can be used, the status shows what the readiness probe has found."""
_SAID_OR_NOT_READY = f"{_NOT_READY}|boom"
_AT = "2026-01-01T00:00:00Z"


def _launcher(name: str, says: str, handler: Handler, *, quick: bool = False) -> Hostile:
    """A job with a launcher, whose first pod loses its readiness, so that the operator asks the launcher why."""
    return Hostile(
        name=f"launcher-{name}",
        says=says,
        spec={"restartPolicy": {"inPlace": True, "maxRestarts": 0}},
        launcher=handler,
        act=loses_readiness,
        quick=quick,
    )


def _ended(**changes: object) -> Handler:
    """A launcher that reports the end of attempt 1, with some fields replaced."""
    return page(json.dumps({"attempt": 1, "exitInfo": {"exitCode": 3, "message": "boom", "at": _AT, **changes}}))


LAUNCHERS = (
    _launcher("silent", _NOT_READY, servers.silent, quick=True),
    _launcher("endless", _NOT_READY, servers.endless(b"{" * 65_536)),
    _launcher("redirect", _NOT_READY, servers.redirect(f"http://{ELSEWHERE}:{ELSEWHERE_PORT}/x")),
    _launcher("html", _NOT_READY, page("<html></html>")),
    _launcher("deep", _NOT_READY, page('{"attempt": ' + "[" * 60_000)),
    _launcher("attempt-max", _NOT_READY, page('{"attempt": 2147483647}'), quick=True),
    _launcher("attempt-1e30", _NOT_READY, page(json.dumps({"attempt": 10**30}))),
    _launcher("code-1e30", _SAID_OR_NOT_READY, _ended(exitCode=10**30), quick=True),
    _launcher("code-true", _SAID_OR_NOT_READY, _ended(exitCode=True)),
    _launcher("year-1", _SAID_OR_NOT_READY, _ended(at="0001-01-01T00:00:00Z"), quick=True),
    _launcher("year-9999", _SAID_OR_NOT_READY, _ended(at="9999-12-31T23:59:59Z")),
    _launcher("no-zone", _SAID_OR_NOT_READY, _ended(at="2026-01-01T00:00:00")),
    _launcher("surrogate", _SAID_OR_NOT_READY, _ended(message="boom \udce9")),
    _launcher("message-60kb", _SAID_OR_NOT_READY, _ended(message="boom " + "x" * 60_000)),
)


def _failing(name: str, message: str, says: str = "^lastFailure .*boom", *, quick: bool = False) -> Hostile:
    """A job that fails with this termination message, which the status must show as far as it can be shown."""
    return Hostile(
        name=f"message-{name}",
        says=says,
        spec={"restartPolicy": {"maxRestarts": 0}},
        start=fails(message),
        quick=quick,
    )


def _succeeding(name: str, message: str, *, quick: bool = False) -> Hostile:
    """A job that succeeds with this termination message, which must not keep it from ending."""
    return Hostile(name=f"message-{name}", says="^Succeeded=True", start=fails(message, code=0), quick=quick)


MESSAGES = (
    _succeeding("infinity", '{"rank": 0, "progress": {"step": 9, "metrics": {"perplexity": Infinity}}}', quick=True),
    _succeeding("metric-name", json.dumps({"rank": 0, "progress": {"step": 9, "metrics": {"a" * 3900: 1}}})),
    _succeeding("step-1e30", json.dumps({"rank": 0, "progress": {"step": 10**30}})),
    _failing("surrogate", '{"message": "boom \\udce9"}', quick=True),
    _failing("rank-1e30", json.dumps({"rank": 10**30, "exception": "E", "message": "boom"})),
    _failing("hang-nan", '{"message": "boom", "hang": {"phase": 1, "lastHeartbeat": NaN}}'),
    _failing("exception-4kb", json.dumps({"rank": 0, "exception": "E" * 3900, "message": "boom"})),
    _failing("control", "\x1b[31mboom\x1b[0m \x00\x07\u202e\u2066 \r"),
    _failing("deep", _DEEP, "^lastFailure "),
    _failing("deep-object", '{"a":' * 800, "^lastFailure "),
)
