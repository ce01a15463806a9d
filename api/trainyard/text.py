"""Wording of counts and lists in messages."""

from collections.abc import Iterable


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, as in "1 worker" and "2 workers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Return words as a list in a sentence: "a", "a and b", "a, b and c"; `last` comes before the last of them."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final
