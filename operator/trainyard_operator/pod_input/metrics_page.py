"""The metrics page of rank 0, read piece by piece into status.progress.

Any program may serve the page, so time and memory are bounded whatever it contains: the page is never held as a whole,
only lines that start with `trainyard_` are looked at, and each of them is parsed in linear time. A value that cannot be
used is left out with a description of the problem, and the rest of the page still counts.
"""

import re
from datetime import datetime
from typing import Any, Final

from trainyard.base import POSITIVE_INT32
from trainyard.protocol import worker_metrics
from trainyard.protocol.progress import MAX_METRICS, METRIC_NAME, Progress, progress_fields
from trainyard.protocol.worker_metrics import WorkerMetric
from trainyard_operator.pod_input.numbers import count_of, finite
from trainyard_operator.pod_input.text import clean_text

MAX_PAGE_BYTES: Final = 2 * 2**20
"""Bytes of a page that are read: enough for the metrics of about 20,000 ranks. The rest counts as absent."""
MAX_LINE_BYTES: Final = 1024
MAX_LINES: Final = 25_000
"""Lines with metrics of Trainyard that are looked at."""
_BYTES_PER_SECOND = 65_536
_LINES_PER_SECOND = 1000
_MAX_NUMBER_BYTES = 64
_MAX_QUOTED = 60
"""Characters of a page that a description of a problem quotes."""
_PREFIX = b"trainyard_"
_RANK = re.compile(rb'(?:^|,)\s*rank="([0-9]{1,10})"')
_ANY_RANK = re.compile(rb"(?:^|,)\s*rank=")


class PageReader:
    """Takes one page in pieces: `feed` each of them, then read `progress` and `problem`."""

    def __init__(self) -> None:
        self._metrics = {m.name: m for m in worker_metrics.METRICS if m.field is not None and not m.open_ended}
        self._metrics[worker_metrics.TOKENS.name] = worker_metrics.TOKENS
        self._families = [m for m in worker_metrics.METRICS if m.field is not None and m.open_ended]
        self._values: dict[str, float] = {}
        """Finite values by field of status.progress."""
        self._members: dict[str, dict[str, float]] = {m.field: {} for m in self._families if m.field is not None}
        """Members of each open-ended family, by its field and their names."""
        self._tokens: float | None = None
        self._bytes = self._lines = 0
        self._first = b""
        """First byte that is no white space."""
        self._rest = b""
        """Start of a line whose end was not in the last piece."""
        self._problem = ""
        self._more_problems = 0

    @property
    def problem(self) -> str:
        """What is wrong with the page, with the limit that it exceeds; empty if all of it can be used."""
        more = f" (and {self._more_problems} more problems)" if self._more_problems else ""
        return self._problem + more

    @property
    def seconds_of_budget(self) -> float:
        """Seconds for which reading the page has used up the budget of its job: a long page is read less often."""
        return max(self._bytes / _BYTES_PER_SECOND, self._lines / _LINES_PER_SECOND)

    def feed(self, piece: bytes) -> bool:
        """Take the next piece of the page. Return whether the page may continue; else the rest is to be dropped."""
        if not self._first:
            self._first = piece.lstrip()[:1]
            # A page starts with a comment or a name.
            if self._first and not self._first.isalpha() and self._first not in b"#_:":
                self._note(f"the page is not in the Prometheus text format: it starts with {_quote(self._first)}")
        too_long = self._bytes + len(piece) > MAX_PAGE_BYTES
        if too_long:
            piece = piece[: MAX_PAGE_BYTES - self._bytes]
            self._note(f"the page has more than {MAX_PAGE_BYTES} bytes; the rest was not read")
        self._bytes += len(piece)
        text = self._rest + piece
        end = text.rfind(b"\n") + 1
        # One byte more than a line may have shows that it is too long.
        self._rest = text[end : end + MAX_LINE_BYTES + 1]
        self._read_lines(text[:end])
        return not too_long and self._lines <= MAX_LINES

    def progress(self, *, attempt: int, now: datetime) -> Progress | None:
        """Return the progress that the page shows; None if it does not count steps. Before the first step it is 0.

        Args:
            attempt: attempt of the pod, for a page that does not name its attempt.
            now: time at which the page was read.
        """
        if self._rest:
            self._read_lines(self._rest + b"\n")
            self._rest = b""
        values = self._values
        if "step" not in values:
            return None
        fields: dict[str, Any] = {"attempt": attempt}
        fields |= progress_fields(values, lambda _, value: significant(value))
        fields |= {field: dict(sorted(members.items())) or None for field, members in self._members.items()}
        return Progress(
            **fields,
            eval_loss=self._members["metrics"].get("loss"),
            eta_seconds=self._eta_seconds(),
            updated_at=now.replace(microsecond=0),
        )

    def _eta_seconds(self) -> float | None:
        """Return the seconds that the remaining steps take, with as many tokens each as the steps so far."""
        values, tokens = self._values, self._tokens
        speed = values.get("tokens_per_second")
        if not values["step"] or tokens is None or not speed or "total_steps" not in values:
            return None
        remaining_steps = max(0.0, values["total_steps"] - values["step"])
        return finite(significant(remaining_steps * tokens / values["step"] / speed, 3))

    def _read_lines(self, text: bytes) -> None:
        """Read complete lines, of which only those of Trainyard's metrics cost time."""
        start = 0 if text.startswith(_PREFIX) else text.find(b"\n" + _PREFIX) + 1
        while (start or text.startswith(_PREFIX)) and self._lines <= MAX_LINES:
            end = text.index(b"\n", start)
            self._lines += 1
            if self._lines > MAX_LINES:
                self._note(
                    f"the page has more than {MAX_LINES} lines that start with trainyard_; the rest was not read"
                )
            else:
                self._read_line(text[start:end])
            start = text.find(b"\n" + _PREFIX, end) + 1
            if not start:
                return

    def _read_line(self, line: bytes) -> None:
        if len(line) > MAX_LINE_BYTES:
            self._note(f"a line has more than {MAX_LINE_BYTES} bytes: {_quote(line)}")
            return
        # NAME{LABELS} VALUE [TIMESTAMP], where a label may contain braces and the part after it may not.
        before, brace, after = line.rpartition(b"}")
        encoded_name, _, labels = before.partition(b"{") if brace else line.partition(b" ")
        name = encoded_name.strip().decode("ascii", "replace")
        metric = self._metrics.get(name)
        family = None if metric else next((f for f in self._families if name.startswith(f.name)), None)
        # The status does not hold this metric.
        if metric is None and family is None:
            return
        words = (after if brace else labels).split(None, 1)
        value = _number(words[0]) if words else None
        if value is None:
            self._note(f"{_quote(name)} has a value that is not a number: {_quote(words[0] if words else b'')}")
        # JSON has neither NaN nor Inf. A training loss may well be NaN, so that is no problem of the page.
        elif finite(value) is not None:
            if metric is not None:
                self._set(metric, value, labels if brace else b"")
            elif family is not None:
                self._add_member(family, name.removeprefix(family.name), value)

    def _set(self, metric: WorkerMetric, value: float, labels: bytes) -> None:
        """Keep the value of a metric with one value, or with one value for each rank."""
        if metric is worker_metrics.TOKENS:
            self._tokens = value
            return
        assert metric.field is not None
        if metric.integer and count_of(value) is None:
            self._note(f"{metric.name} is {value:g}, not a count from 0 to {POSITIVE_INT32}")
            return
        if metric.rank_field is None:
            self._values[metric.field] = value
            return
        rank = _rank(labels)
        if rank is None:
            self._note(f"{metric.name} has a label rank that must be a number from 0 to {POSITIVE_INT32}")
        # Of a metric by rank, the status holds the largest value and its rank.
        elif value > self._values.get(metric.field, 0.0):
            self._values |= {metric.field: value, metric.rank_field: rank}

    def _add_member(self, family: WorkerMetric, name: str, value: float) -> None:
        """Keep the value of one metric of an open-ended family."""
        assert family.field is not None
        members = self._members[family.field]
        if not METRIC_NAME.fullmatch(name):
            rule = "what follows must be 1 to 63 characters of a-z, A-Z, 0-9 and _"
            self._note(f"the name of a metric {family.name}... is refused: {rule}, not {_quote(name)}")
        elif name not in members and len(members) >= MAX_METRICS:
            self._note(f"the page has more than {MAX_METRICS} metrics {family.name}...; the others are left out")
        else:
            members[name] = significant(value)

    def _note(self, problem: str) -> None:
        """Remember the first problem, and how many there are besides it."""
        if self._problem:
            self._more_problems += 1
        else:
            self._problem = problem


def parse_progress(page: str, *, attempt: int, now: datetime) -> Progress | None:
    """Return the progress that a complete page shows; None if it does not count steps (see `PageReader.progress`)."""
    reader = PageReader()
    reader.feed(page.encode("utf-8", "replace"))
    return reader.progress(attempt=attempt, now=now)


def significant(value: float, digits: int = 6) -> float:
    """Return the value rounded to some significant digits; 6 are readable, and about what float32 holds."""
    return float(f"{value:.{digits}g}")


def _number(text: bytes) -> float | None:
    """Return the number that a text is; None if it is none, or is absurdly long."""
    if len(text) > _MAX_NUMBER_BYTES:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _rank(labels: bytes) -> int | None:
    """Return the value of the label rank, 0 without that label; None if it is no rank."""
    found = _RANK.search(labels)
    if found is None:
        return None if _ANY_RANK.search(labels) else 0
    return count_of(int(found[1]))


def _quote(text: bytes | str) -> str:
    """Return the start of a text from a page in quotation marks, fit for a status."""
    if isinstance(text, bytes):
        text = text[: 4 * _MAX_QUOTED].decode("utf-8", "replace")
    return f'"{clean_text(text[:_MAX_QUOTED], _MAX_QUOTED)}"'
