"""Jobs whose metrics page is hostile."""

from tests.integration.hostile import servers
from tests.integration.hostile.kind import ELSEWHERE, ELSEWHERE_PORT, Hostile, line_with
from tests.integration.hostile.servers import Handler, page

STEP = "trainyard_steps_total 7\n"
_SHOWN = r'^progress .*"step": 7\b'
"""The page's good figures are shown."""
_TOO_LONG = "byte|KiB|MiB|long|large|size|more than"
_NO_ANSWER = "answer|respon|reach|connect|time|slow"


def _refused(name: str, why: str, handler: Handler, *, quick: bool = False) -> Hostile:
    """A job whose status must say why its metrics page is not used."""
    return Hostile(name=f"page-{name}", says=line_with("metrics", why), spec={"metrics": {}}, page=handler, quick=quick)


def _shown(name: str, handler: Handler, *, says: str = _SHOWN, quick: bool = False) -> Hostile:
    """A job whose status shows the page's good figures, and is not hurt by the others."""
    return Hostile(name=f"page-{name}", says=says, spec={"metrics": {}}, page=handler, quick=quick)


def _labels(count: int) -> str:
    return ",".join(f'l{number}="{number}"' for number in range(count))


PAGES = (
    # Figures that no training has.
    _refused("rank-inf", "rank", page(STEP + 'trainyard_straggler_ratio{rank="inf"} 2\n'), quick=True),
    _refused("rank-1e30", "rank", page(STEP + 'trainyard_straggler_ratio{rank="1e30"} 2\n')),
    _refused("rank-text", "rank", page(STEP + 'trainyard_straggler_ratio{rank="gpu0"} 2\n')),
    _refused("steps-1e30", "step", page("trainyard_steps_total 1e30\n"), quick=True),
    _refused("steps-negative", "step", page("trainyard_steps_total -5\n")),
    _refused("steps-digits", "step|long", page("trainyard_steps_total " + "9" * 900 + "\n")),
    _shown("steps-nan", page("trainyard_steps_total NaN\n"), says="step|^Running=True"),  # as before the first step
    _shown("planned-negative", page(STEP + "trainyard_planned_steps -5\n")),
    _shown("loss-nan", page(STEP + "trainyard_loss NaN\ntrainyard_eval_loss Inf\ntrainyard_eval_f1 NaN\n")),
    # Each reading differs from the one before.
    _shown("restless", page(*(f"{STEP}trainyard_loss 0.{n}\ntrainyard_eval_f1 {n}\n" for n in range(1, 97)))),
    # Names without end.
    _refused("name-900kb", _TOO_LONG, page(STEP + "trainyard_eval_" + "a" * 900_000 + " 1\n"), quick=True),
    _refused(
        "names-10000",
        f"{_TOO_LONG}|many",
        page(STEP + "".join(f"trainyard_eval_{n} 1\n" for n in range(10_000))),
    ),
    _shown("names-40", page(STEP + "".join(f"trainyard_eval_{n} 1\n" for n in range(40)))),
    _shown("name-escape", page(STEP + "trainyard_eval_\x1b[31mred\x00 1\n"), says=f"{_SHOWN}|{line_with('metrics')}"),
    # Lines that take a careless parser for ever.
    _refused("backslashes", _TOO_LONG, page(STEP + 'trainyard_loss{a="' + '\\"' * 495_000 + '"} 1\n'), quick=True),
    _refused("labels", _TOO_LONG, page(STEP + "trainyard_loss{" + _labels(60_000) + "} 1\n")),
    _refused("comments", _TOO_LONG, page("# HELP x y\n" * 250_000 + STEP)),
    # Bytes without end.
    _refused("endless", f"{_TOO_LONG}|format", servers.endless(b"0" * 65_536), quick=True),
    _refused("endless-lines", _TOO_LONG, servers.endless(STEP.encode() * 3000)),
    _refused("endless-header", f"{_TOO_LONG}|{_NO_ANSWER}|header|HTTP", servers.endless_header),
    _refused("gzip-bomb", f"{_TOO_LONG}|compress|encod|format", servers.gzip_bomb(64 * 1024 * 1024), quick=True),
    # Connections that lead nowhere.
    _refused("silent", _NO_ANSWER, servers.silent, quick=True),
    _refused("drips", _NO_ANSWER, servers.drips, quick=True),
    _refused("closes", _NO_ANSWER, servers.closes),
    _refused(
        "redirect",
        "redirect|HTTP|302",
        servers.redirect(f"http://{ELSEWHERE}:{ELSEWHERE_PORT}/latest/meta-data"),
        quick=True,
    ),
    # It is reported after ten minutes: a program may load for long before it serves its page.
    Hostile(name="page-absent", says="^Running=True", spec={"metrics": {}}),
    # Wrong types.
    _refused("not-http", f"{_NO_ANSWER}|HTTP", servers.speaks_ssh),
    _shown("not-utf8", page(STEP.encode() + b"trainyard_loss\xff\xfe 1\n"), says=f"{_SHOWN}|{line_with('metrics')}"),
    _refused("binary", "utf-8|text|format|step", page(bytes(range(256)) * 400)),
    _refused("error", "HTTP|500", page("no", status="500 Internal Server Error")),
    _shown("html", page("<html><body>welcome</body></html>"), says=line_with("metrics|step")),
)
