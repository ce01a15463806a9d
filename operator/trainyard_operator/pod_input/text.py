"""Text from pods, made fit for a status, an event and a log line."""

import unicodedata

GAP = " ... "
"""Replacement of the middle of a text that is too long."""
MAX_MESSAGE = 4096
"""Characters of a termination message: the kubelet keeps as many bytes."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def clean_text(text: str, max_characters: int) -> str:
    """Return a text in one line, without control characters, of at most `max_characters` characters.

    White space becomes single spaces. Surrogates, which no encoding can store, become U+FFFD. A text that is too long
    loses its middle: the start says what it is about, and the end of a log says what went wrong.
    """
    # A text of many megabytes is cut before each of its characters is looked at.
    text = shorten(text, 4 * max_characters)
    # Most texts have nothing to remove: no control or format character, and no white space but spaces.
    if text.isprintable():
        return shorten(" ".join(text.split()), max_characters)
    words = "".join(_clean_character(character) for character in text).split()
    return shorten(" ".join(words), max_characters)


def bounded_message(text: str) -> str:
    """Return a termination message, or the end of a log, with its lines and of at most `MAX_MESSAGE` characters."""
    # It is cut before its characters are looked at. What the kubelet and Trainyard's launcher write is not too long.
    text = shorten(text, MAX_MESSAGE).strip()
    return text if text.isascii() else "".join(_REPLACEMENT if "\ud800" <= c <= "\udfff" else c for c in text)


def shorten(text: str, max_characters: int) -> str:
    """Return a text of at most `max_characters` characters: one that is longer loses its middle."""
    if len(text) <= max_characters:
        return text
    kept = max(0, max_characters - len(GAP))
    tail = kept // 2
    return (text[: kept - tail] + GAP + text[len(text) - tail :])[:max_characters]


def _clean_character(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category == "Cs":
        return _REPLACEMENT
    # Control and format characters: escape sequences of terminals, changes of the writing direction.
    return "" if category in ("Cc", "Cf") else character
