"""Text of items as people want to read it: without the entities, tags and scripts of web pages."""

import html
import math
import re
from typing import Any

from gr.data.sequences import DataError

# Elements that stand within a word or a line; all others part what is before them from what follows.
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
# Rules of a style sheet before the text, perhaps in a comment that nothing ends; of properties the
# first word, of selectors the first part.
_STYLES = re.compile(
    rf"""(?:<!--)?(?:\s*
    (?:[.\#][a-zA-Z_]|(?:{"|".join((_INLINE + " " + _BLOCK).split())})[.:\#,>\s{{])[^{{}}<]*
    \{{\s*(?:margin|padding|color|background|display|width|height|font|border|position|float|text
    |line|overflow|top|left|right|bottom|content|z-index|min|max|vertical|list|cursor|opacity)
    [\w-]*\s*:[^{{}}]*(?:\}}|$))+""",
    re.VERBOSE,
)
# What begins in this way, or holds the last, is a page's script and no text.
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
_SURROGATE = re.compile("[\ud800-\udfff]")  # Half a character, or a byte that is no UTF-8.
_DEEPEST = 20  # Levels of lists and dictionaries within each other.


def without_markup(text: str) -> str:
    """A text with HTML entities resolved (also twice escaped ones) and tags taken away.

    Only elements of HTML are tags: "I <3 NY", "a < b" and "<a_12>" stay. A page's script becomes
    the empty text, and the rules of a style sheet before a text go. A text without any of these
    stays as it is, white space included.
    """
    plain = text
    while "&" in plain and (resolved := html.unescape(plain)) != plain:
        plain = resolved
    if "<" in plain:
        head, end, tail = plain.rpartition("-->")  # Beyond it nothing ends a comment.
        plain = _COMMENT.sub(" ", head + end) + tail
        plain = _BLOCK_TAG.sub(" ", _INLINE_TAG.sub("", _HIDDEN.sub(" ", plain)))
    start = len(plain) - len(plain.lstrip())
    if _SCRIPT.match(plain, start):
        return ""
    if styles := _STYLES.match(plain, start):
        plain = plain[styles.end() :]
    return text if plain == text else " ".join(plain.split())


def clean_text(text: str) -> str:
    """As `without_markup`, on one line, and without what is no character of a text."""
    text = without_markup(text)
    if not text.isprintable():
        text = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))
    return " ".join(text.split())


def as_text(value: Any, depth: int = 0) -> str:
    """A value of JSON, Parquet or a Python literal as clean text, lists joined by commas.

    Raises:
        DataError: lists nested deeper than any text is.
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
