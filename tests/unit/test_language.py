"""Words and phrases that documentation, chart, CRD and the strings and docstrings of shipped code do not use.

The terms are those of Kubernetes, PyTorch and torchtitan, see CONTRIBUTING.md. Each entry has the usual replacement.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = (
    "api/trainyard",
    "operator/trainyard_operator",
    "trainer/trainyard_trainer",
    "cli/trainyard_cli",
    "monitoring/trainyard_monitoring",
)
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
    "Dockerfile",
    "pyproject.toml",
    "docs/**/*.md",
    "charts/trainyard/*.yaml",
    "charts/trainyard/templates/*",
    "charts/trainyard/files/**/*",
    "manifests/**/*.yaml",
)

BANNED = {
    r"mishaps?": "degradation, failure",
    r"signs? of life": "heartbeat",
    r"(?:is|are|was|were|of) no use": "cannot be used, is invalid, is not finite",
    r"(?:is|are|was|were|for) no numbers?": "NaN or Inf, not finite",
    r"judg(?:e|es|ed|ing)": "check, decide, evaluate",
    r"verdicts?": "decision",
    r"deaf": "unresponsive",
    r"whoever": "name the subject",
    r"somebody|someone|nobody|everybody": "name the subject: users, operators, ranks",
    r"anew|afresh": "again",
    r"taken? for (?:lost|dead|gone)": "considered lost",
    r"gone on from": "resumed from",
    r"(?:go|goes|going|went) on": "continue, resume",
    r"(?:take|takes|taken|took) (?:it |them )?up(?! to)": "resume, load",
    r"for want of|want of memory": "without, because of missing ...; OOM",
    r"(?:bear|bears|borne|bore) with": "retry, tolerate",
    r"(?:no|any|have|has|find|finds|found|enough) room|room (?:for|there|back|again|elsewhere)": "capacity",
    r"in each room|rooms": "packages, folders",
    r"(?:stand|stands|standing|stood) by": "standby",
    r"(?:tell|tells|told) (?:apart|how far|of one)": "distinguish, report",
    r"whose fault|to blame|blames?|blamed": "cause, culprit, failure attribution",
    r"(?:get|gets|getting) on": "make progress",
    r"last words?": "termination message",
    r"whence|lest|wherefore|thither": "plain English",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"for the worse": "fail",
    r"come what may|in good order": "plain English",
    r"(?:make|makes|making|made) (?:a )?noises?|noises? (?:in|of) (?:the )?(?:logs?|events?|alerts?)": "alert",
    r"(?:not|n't|never) (?:un|im|in)(?:known|usual|possible|common|like|frequent|valid)": "no double negation",
    r"looks? after": "manage",
    r"knows nothing|notices? nothing": "is not affected",
    r"ghcr\.io/trainyard|github\.com/trainyard|pip install ['\"]?trainyard": "a name that belongs to another project",
}
GAP = r"\s+(?:[#|]\s*)?"
"""White space between two words, also at the end of a line in a comment or a table."""
PATTERNS = {re.compile(rf"\b(?:{words.replace(' ', GAP)})(?!\w)", re.I): fix for words, fix in BANNED.items()}


def hits(text: str, place: str, first_line: int = 1) -> list[str]:
    """Return one line for each banned phrase in a text."""
    found = []
    for pattern, fix in PATTERNS.items():
        for match in pattern.finditer(text):
            line = first_line + text.count("\n", 0, match.start())
            found.append(f"{place}:{line}: {' '.join(match[0].split())!r}; use: {fix}")
    return found


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the string literals and docstrings of a module, with their lines; parts of one f-string are joined."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def test_the_patterns_find_what_they_are_for() -> None:
    text = "It gave no sign\nof life, so whoever waits goes on anew.\n# There is\n# room for it. He is not unknown."
    lines = [int(hit.split(":")[1]) for hit in hits(text, "page")]
    assert sorted(lines) == [1, 2, 2, 2, 4, 4]
    assert hits("The judgement room is roomy; resume from there, at once, and go once more.", "page") == []
    assert sorted(texts('"""A docstring."""\nx = f"a {1} b"\n')) == [(1, "A docstring."), (2, "a {} b")]


@pytest.mark.parametrize("pattern", PAGES)
def test_pages_use_the_terms_of_the_field(pattern: str) -> None:
    files = [file for file in sorted(REPOSITORY.glob(pattern)) if file.is_file()]
    assert files, pattern
    found = [hit for file in files for hit in hits(file.read_text("utf-8"), str(file.relative_to(REPOSITORY)))]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_strings_and_docstrings_use_the_terms_of_the_field(package: str) -> None:
    found = []
    for file in sorted((REPOSITORY / package).rglob("*.py")):
        for line, text in texts(file.read_text("utf-8")):
            found += hits(text, str(file.relative_to(REPOSITORY)), line)
    assert found == [], "\n".join(found)


def anchor(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_between_pages_lead_somewhere() -> None:
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    broken = []
    for page in pages:
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith(("http://", "https://")):
                continue
            path, _, fragment = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M) if target.suffix == ".md" else []
            if not target.exists() or (fragment and fragment not in map(anchor, headings)):
                broken.append(f"{page.relative_to(REPOSITORY)}: {link}")
    assert broken == [], "\n".join(broken)
