"""A page of HTML in one file: text, tables and pictures, without scripts and without anything that is loaded.

All text is escaped: tokens and names come from data. matplotlib is imported when the first picture is drawn.
"""

import html
import io
import os
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trainyard_trainer.runtime.object_store import Location, ObjectPath

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h1 + p { color: #59636e; margin-top: 0; }
table { border-collapse: collapse; margin: 0.8rem 0; }
th, td { border-bottom: 1px solid #d1d9e0; padding: 0.25rem 0.9rem 0.25rem 0; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #59636e; }
p.tokens { font-family: ui-monospace, monospace; white-space: pre-wrap; line-height: 1.9; }
p.tokens span { border-radius: 3px; padding: 1px 0; }
"""


class Page:
    """A page, built from top to bottom."""

    def __init__(self, title: str, subtitle: str) -> None:
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(subtitle)}</p>"]

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table; numbers are aligned to the right, real ones with four digits."""
        numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
        head = "".join(f"<th{_class(n)}>{html.escape(c)}</th>" for c, n in zip(columns, numeric, strict=True))
        body = "".join(
            "<tr>"
            + "".join(f"<td{_class(n)}>{html.escape(cell(v))}</td>" for v, n in zip(row, numeric, strict=True))
            + "</tr>\n"
            for row in rows
        )
        self._parts.append(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")

    def tokens(self, texts: Sequence[str], weights: Sequence[float]) -> None:
        """Add a text whose tokens are coloured: blue for positive weights, red for negative ones, by their size."""
        largest = max((abs(weight) for weight in weights), default=0.0) or 1.0
        spans = []
        for text, weight in zip(texts, weights, strict=True):
            color = "31, 119, 220" if weight > 0 else "220, 60, 40"
            style = f"background: rgba({color}, {0.85 * abs(weight) / largest:.3f})"
            spans.append(f'<span style="{style}" title="{weight:.4f}">{html.escape(_visible(text))}</span>')
        self._parts.append(f'<p class="tokens">{"".join(spans)}</p>')

    def figure(self, figure: "Figure", caption: str) -> None:
        """Add a picture, as SVG inside the page."""
        self._parts.append(f"<figure>{_svg(figure)}<figcaption>{html.escape(caption)}</figcaption></figure>")

    def content(self) -> str:
        """Return the page."""
        head = f'<meta charset="utf-8"><title>{html.escape(self._title)}</title><style>{_STYLE}</style>'
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )


def write_file(path: Location, content: str) -> None:
    """Write a file or object atomically, and its folder if there is none.

    Raises:
        OSError: the storage refuses.
    """
    if isinstance(path, ObjectPath):
        path.write_bytes(content.encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(content, "utf-8")
    part.replace(path)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty picture of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def minute(time: str) -> str:
    """Return a time of ISO 8601 in UTC, as JSON holds it, for people."""
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"


def cell(value: Any) -> str:
    """Return the text of a value in a table."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _visible(text: str) -> str:
    """Return a token whose line breaks and empty texts can be seen."""
    return text.replace("\n", "↵\n").replace("\t", "⇥") or "∅"


def _svg(figure: "Figure") -> str:
    """Return a picture as an SVG element that is the same for the same picture."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "trainyard"}):
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return re.sub(r"\A.*?(?=<svg)", "", content.getvalue(), flags=re.DOTALL)
