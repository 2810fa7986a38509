"""The terms of an item's text for TF-IDF: words, word pairs, and characters in some scripts."""

import functools
import itertools
import re
import sys
import unicodedata

# Scripts that put no spaces between words, or glue endings to them (Korean): Thai, Lao, Tibetan,
# Burmese, Khmer, kana, Chinese characters, Yi, Hangul.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua000-\ua4cf\uac00-\ud7af\U00020000-\U0003ffff"
)
_LATIN = (
    "0-9_A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1d00-\u1dbf\u1e00-\u1eff"
    "\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f"
)
_SEMITIC = "\u0590-\u074f\u0750-\u077f\u0860-\u08ff"  # Hebrew, Arabic, Syriac.
# Soft hyphens, joiners and variation selectors within words are ignored.
_INVISIBLE = re.compile("[\u00ad\u200c\u200d\u2060\ufe00-\ufe0f\ufeff]")
_EMOJI = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff]")
_NOT_A_WORD = "\0"  # Prefix of terms that are parts of words, to distinguish them from words.


def terms(text: str) -> list[str]:
    """The terms of a text, for English those of scikit-learn's `TfidfVectorizer`.

    Words of two characters or more, without English stop words, and pairs of neighbours. Details by script:

    * Latin, Hebrew and Arabic, where marks are often left out: a word counts without its marks, and a word with marks
      also as it stands. Elsewhere marks are part of the letter (dakuten, vowel signs, the breve of `й`).
    * Scripts other than Latin, and emoji: characters count too, one and two at a time where words are not separated by
      spaces, else three at a time.

    A text without any word, such as `!!!`, is one term.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    if text.isascii():
        words, parts = re.findall(r"\w\w+", text.lower()), []
    else:
        words, parts = _words_and_parts(text)
    if not words and not parts and not re.search(r"\w", text):
        parts = text.split()
    words = [word for word in words if word not in ENGLISH_STOP_WORDS]
    pairs = [f"{left} {right}" for left, right in itertools.pairwise(words)]
    return [*words, *pairs, *(_NOT_A_WORD + part for part in parts)]


def _words_and_parts(text: str) -> tuple[list[str], list[str]]:
    """The words of any script, and further terms."""
    word_pattern, marked_pattern, character_pattern = _patterns()
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text.lower())).lower()
    words, parts = [], _EMOJI.findall(text)
    for word in word_pattern.findall(text):
        # Decomposes marks and letters, keeps or drops the marks, and composes them again.
        bare = marked_pattern.sub(r"\1", unicodedata.normalize("NFD", word))
        bare = unicodedata.normalize("NFC", bare)
        if len(bare) > 1:
            words.append(bare)
        if word != bare:
            parts.append(word)
        if not re.fullmatch(f"[{_LATIN}]*", bare):
            characters = character_pattern.findall(word)
            sizes = (1, 2) if re.match(f"[{_UNSPACED}]", word) else (3,)
            for size in sizes:
                starts = range(len(characters) - size + 1)
                parts += ["".join(characters[at : at + size]) for at in starts]
    return words, parts


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """A word of one kind of script; marks, after their letter if they stay; a letter with marks."""
    every = map(chr, range(0x300, sys.maxunicode + 1))
    marks = "".join(char for char in every if unicodedata.category(char).startswith("M"))
    word = rf"(?:(?=[{_UNSPACED}])\w[{marks}]*)+|(?:(?![{_UNSPACED}])\w[{marks}]*)+"
    marked = rf"([^\W{_LATIN}{_SEMITIC}{marks}][{marks}]+)|[{marks}]+"
    return re.compile(word), re.compile(marked), re.compile(rf"\w[{marks}]*")
