"""Wording of counts in messages."""


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, as in "1 worker" and "2 workers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
