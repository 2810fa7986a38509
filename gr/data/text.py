"""Cleans item texts: removes the entities, tags and scripts of web pages."""

import html
import math
import re
from typing import Any

from gr.data.sequences import DataError

# Elements within a word or a line; all others separate the text before and after them.
_INLINE = (
    "a abbr b big cite code del dfn em font i ins kbd label mark nobr q s samp small span strike "
    "strong sub sup time tt u var wbr"
)
_BLOCK = (
    "address article aside audio base blockquote body br button caption center col colgroup dd "
    "details div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 "
    "h6 head header hr html iframe img input legend li link main map meta nav noscript object ol "
    "optgroup option p param picture pre script section select source style summary svg table "
    "tbody td textarea tfoot th thead title tr ul video"
)


def _tags(names: str) -> re.Pattern[str]:
    """Tags of elements: `<b>`, `</b>`, `<br/>`, `<a href="x">`, and one that is cut off."""
    attributes = r"""\s+(?=[\w:-]+\s*=)(?:(?:"[^"]*"|'[^']*'|[^'"<>])*>|[^<>]*(?:>|$))"""
    return re.compile(rf"</?(?:{'|'.join(names.split())})(?:\s*/?>|{attributes})", re.IGNORECASE)


_INLINE_TAG, _BLOCK_TAG = _tags(_INLINE), _tags(_BLOCK)
_HIDDEN = re.compile(
    r"<!doctype\b[^>]*>|<(script|style)(?:\s[^>]*)?>.*?(?:</\1\s*>|$)",
    re.IGNORECASE | re.DOTALL,
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Rules of a style sheet before the text, possibly in an unclosed comment. Properties match by their first word,
# selectors by their first part.
_STYLES = re.compile(
    rf"""(?:<!--)?(?:\s*
    (?:[.\#][a-zA-Z_]|(?:{"|".join((_INLINE + " " + _BLOCK).split())})[.:\#,>\s{{])[^{{}}<]*
    \{{\s*(?:margin|padding|color|background|display|width|height|font|border|position|float|text
    |line|overflow|top|left|right|bottom|content|z-index|min|max|vertical|list|cursor|opacity)
    [\w-]*\s*:[^{{}}]*(?:\}}|$))+""",
    re.VERBOSE,
)
# A text that begins like this, or contains the last pattern, is a page's script.
_SCRIPT = re.compile(
    r"""(?:
        (?:var|const)\s+[\w$]+\s*=
      | (?:window|document|jQuery)[.\[(]\w
      | \$\((?:document|window|function|["'])
      | [(!]?\s*function\s*[\w$]*\s*\([^)]*\)\s*\{
      | if\s*\(\s*(?:typeof\s|window\b|document\b)
      | P\.(?:when|register|now)\(
      | class="a-
      | @(?:media|import|charset|font-face|keyframes)\b
    )|.*\(new\ Date(?:\(\))?\)\.getTime\(\)""",
    re.VERBOSE | re.DOTALL,
)
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")  # Half a character, or an invalid UTF-8 byte.
_DEEPEST = 20  # Maximum nesting of lists and dictionaries.


def without_markup(text: str) -> str:
    """A text with HTML entities resolved (also doubly escaped ones) and tags removed.

    Only elements of HTML are tags: "I <3 NY", "a < b" and "<a_12>" stay. A page's script becomes the empty text, and
    style sheet rules before a text are removed. Any other text is unchanged, including white space.
    """
    plain = text
    while "&" in plain and (resolved := html.unescape(plain)) != plain:
        plain = resolved
    if "<" in plain:
        head, end, tail = plain.rpartition("-->")  # After it no comment ends.
        plain = _COMMENT.sub(" ", head + end) + tail
        plain = _BLOCK_TAG.sub(" ", _INLINE_TAG.sub("", _HIDDEN.sub(" ", plain)))
    start = len(plain) - len(plain.lstrip())
    if _SCRIPT.match(plain, start):
        return ""
    if styles := _STYLES.match(plain, start):
        plain = plain[styles.end() :]
    return text if plain == text else " ".join(plain.split())


def clean_text(text: str) -> str:
    """As `without_markup`, on one line, and without control characters and surrogates."""
    text = without_markup(text)
    if not text.isprintable():
        text = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))
    return " ".join(text.split())


def as_text(value: Any, depth: int = 0) -> str:
    """A value of JSON, Parquet or a Python literal as clean text, lists joined by commas.

    Raises:
        DataError: lists that are nested too deeply.
    """
    if depth > _DEEPEST:
        raise DataError(f"lists are nested deeper than {_DEEPEST} levels")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | tuple | set):
        return ", ".join(filter(None, (as_text(part, depth + 1) for part in value)))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {as_text(part, depth + 1)}" for key, part in value.items())
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return clean_text(str(value))
