"""Prompts for language models: templates as plain functions, tokenizers, and the names of semantic-ID tokens.

A template is a function from the semantic IDs of a history's items, as text, to the text of the prompt, behind which
the model writes the next item's semantic ID. One of two arguments gets the items' titles too:

    def next_item(history: Sequence[str]) -> str:
        return f"Bought so far: {', '.join(history)}\nNext:"

    def next_titled_item(history: Sequence[str], titles: Sequence[str]) -> str:
        items = (f"{title} {item}" for title, item in zip(titles, history))
        return f"Bought so far: {', '.join(items)}\nNext:"

Tokenizers are those of the `tokenizers` package (`pip install 'gr-constrained[llm]'`).
"""

import dataclasses
import inspect
import os
import string
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from gr.data.files import existing_file
from gr.data.sequences import DataError
from gr.errors import GrError

if TYPE_CHECKING:
    import tokenizers

Template = Callable[..., str]  # (history) -> text, or (history, titles) -> text.

_MARKS = ("\ue000", "\ue001", "\ue002")  # In place of semantic IDs. For private use: in no text.
_TITLE_MARKS = ("\ue010", "\ue011", "\ue012")


def next_item(history: Sequence[str]) -> str:
    """The default template: the items in their order, and the question for the next."""
    return f"A customer bought, oldest first: {', '.join(history)}\nThe customer's next item:\n"


def next_titled_item(history: Sequence[str], titles: Sequence[str]) -> str:
    """`next_item` with titles, of about sixty letters at most: `A red pen <a_12><b_3><c_40>`."""
    short = (textwrap.shorten(title, 60, placeholder="") for title in titles)
    items = (f"{title} {item}".strip() for title, item in zip(short, history, strict=True))
    return f"A customer bought, oldest first: {', '.join(items)}\nThe customer's next item:\n"


def writes_titles(template: Template) -> bool:
    """Whether a template takes the items' titles beside their semantic IDs."""
    parameters = inspect.signature(template).parameters.values()
    return len([p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]) == 2


@dataclasses.dataclass(frozen=True)
class PromptPieces:
    """A template as tokens: what stands before, between and after the items; all empty for semantic IDs alone."""

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    titled: bool = False  # Whether the pieces differ from item to item and are `TitledPieces`; they are not here then.

    def check(self, num_text_tokens: int, error: type[GrError]) -> None:
        """Raises an error for tokens that a model with so many text tokens does not have."""
        largest = max((*self.before, *self.between, *self.after), default=-1)
        if largest >= num_text_tokens:
            raise error(
                f"the prompt's pieces have token {largest}, and num_text_tokens={num_text_tokens}: the model needs the "
                "tokenizer's text tokens"
            )

    def __bool__(self) -> bool:
        return bool(self.before or self.between or self.after or self.titled)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TitledPieces:
    """A template with titles as tokens: what stands around the semantic IDs, for every item.

    Rows are items, and in the last place an item without a title; right-padded with -1.
    """

    # What stands before the semantic ID of the first item, [N + 1, S] int32.
    before: np.ndarray | jax.Array
    # Between the semantic IDs of two items, [N + 1, S'].
    between: np.ndarray | jax.Array
    # Behind the semantic ID of the last item, [N + 1, S''].
    after: np.ndarray | jax.Array
    # Whether the row of `between` is that of the second of the two items, or else of the first.
    of_second: bool = dataclasses.field(metadata={"static": True})
    # That a model has, at least.
    num_text_tokens: int = dataclasses.field(metadata={"static": True})


def load_tokenizer(path: str | os.PathLike[str]) -> "tokenizers.Tokenizer":
    """The tokenizer of a `tokenizer.json`, or of the folder that holds one.

    Raises:
        DataError: if there is none, it cannot be read, or the package `tokenizers` is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            "tokenizers are read by the package `tokenizers`: pip install 'gr-constrained[llm]'"
        ) from error
    path = os.fspath(path)
    file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
    text = existing_file(file).read_text(encoding="utf-8")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The package raises nothing more special.
        raise DataError(f"{file} is no tokenizer: {error}") from error


def id_names(codebook_sizes: Sequence[int]) -> list[str]:
    """Names of all semantic-ID tokens in their order, as MiniOneRec writes them: `<a_0>` is code 0 of level 0.

    Raises:
        DataError: for more levels than there are letters.
    """
    if len(codebook_sizes) > len(string.ascii_lowercase):
        raise DataError(
            f"semantic IDs of {len(codebook_sizes)} levels: there are names for {len(string.ascii_lowercase)}"
        )
    levels = zip(string.ascii_lowercase, codebook_sizes, strict=False)
    return [
        "<gr_pad>",
        "<gr_bos>",
        *(f"<{a}_{code}>" for a, size in levels for code in range(size)),
    ]


def item_texts(tokens: np.ndarray, names: Sequence[str]) -> list[str]:
    """Semantic IDs `[N, L]` of tokens as text, such as `<a_12><b_3><c_40>`."""
    return ["".join(row) for row in np.asarray(names)[np.asarray(tokens)].tolist()]


def grow_tokenizer(
    tokenizer: "tokenizers.Tokenizer", num_text_tokens: int, names: Sequence[str]
) -> "tokenizers.Tokenizer":
    """A copy that knows semantic-ID tokens too: the one of `names[t]` is the number `num_text_tokens + t`.

    A model may have more text tokens than its tokenizer: the numbers between them get names that no text has.

    Raises:
        DataError: if the tokenizer has more tokens than the model, or knows one of the names.
    """
    grown = type(tokenizer).from_str(tokenizer.to_str())
    size = grown.get_vocab_size()
    if size > num_text_tokens:
        raise DataError(
            f"the tokenizer has {size} tokens and the model {num_text_tokens} of text: they do not belong together"
        )
    known = [name for name in names if grown.token_to_id(name) is not None]
    if known:
        raise DataError(
            f"the tokenizer knows {known[0]} already, as number {grown.token_to_id(known[0])}: give other names"
        )
    grown.add_tokens([f"<gr_unused_{number}>" for number in range(size, num_text_tokens)])
    grown.add_tokens(list(names))
    for name in (names[0], names[-1]):
        expected = num_text_tokens + list(names).index(name)
        if grown.token_to_id(name) != expected:
            raise DataError(
                f"the tokenizer numbers {name} {grown.token_to_id(name)} instead of {expected}: its own tokens are not "
                "numbered 0, 1, 2, ..."
            )
    return grown


def encode_prompts(
    tokenizer: "tokenizers.Tokenizer", texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Texts as tokens `[B, P]` int32, right-padded with 0, and their lengths `[B]`; for `gr.models.Prompt`.

    Raises:
        DataError: for a text without tokens.
    """
    rows = [encoded.ids for encoded in tokenizer.encode_batch(list(texts))]
    lengths = np.array([len(row) for row in rows], np.int32)
    if not lengths.all():
        empty = int(lengths.argmin())
        raise DataError(f"prompt {empty} has no tokens: {texts[empty]!r}")
    tokens = np.zeros((len(rows), int(lengths.max(initial=0))), np.int32)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return tokens, lengths


def prompt_pieces(template: Template, tokenizer: "tokenizers.Tokenizer") -> PromptPieces:
    """The tokens of a template, so that prompts can be laid out on the device.

    Each piece is tokenised by itself. That gives the same tokens as the whole text, since a semantic ID's tokens are
    never merged with the text around them.

    Raises:
        DataError: if the template does not put the same text before, between and after items, whatever they are.
    """
    marks = _MARKS
    texts = [template(marks[:count]) for count in (1, 2, 3)]
    before, after = _around(template, texts[0])
    between = texts[1].removeprefix(before + marks[0]).removesuffix(marks[1] + after)
    for count, text in enumerate(texts, start=1):
        if text != before + between.join(marks[:count]) + after:
            raise DataError(
                f"the template {_name(template)} must put the same text before, between and after items, whatever they "
                f"are; of {count} items it made {text!r}. Write other prompts to gr.models.Prompt yourself"
            )
    first, last = _special(tokenizer)
    pieces = [
        tokenizer.encode(text, add_special_tokens=False).ids for text in (before, between, after)
    ]
    return PromptPieces((*first, *pieces[0]), tuple(pieces[1]), (*pieces[2], *last))


def titled_pieces(
    template: Template, tokenizer: "tokenizers.Tokenizer", titles: Sequence[str]
) -> TitledPieces:
    """The tokens of a template that writes titles, so that prompts can be laid out on the device.

    What stands between two semantic IDs is tokenised as a whole, so that prompts have the tokens of their whole text,
    see `prompt_pieces`. Only one of two neighbours' titles can therefore stand there.

    Args:
        template: takes semantic IDs and titles.
        tokenizer: of the text.
        titles: of every item, "" where there is none.

    Raises:
        DataError: if the template does not put the same text around all items but for their titles, or two titles
            between two semantic IDs.
    """
    marks, names = _MARKS, _TITLE_MARKS
    before, after = _around(template, template(marks[:1], names[:1]))
    between = _between(template, names[:2])
    if all(name in between for name in names[:2]):
        raise DataError(
            f"the template {_name(template)} must put titles all before or all after their semantic IDs: between two "
            f"of them it wrote two titles, {between!r}"
        )
    of_second = names[0] not in between
    told = int(of_second)  # Which of two neighbours' titles stands between them, if any.
    for count in (1, 2, 3):
        expected = before + marks[0]
        for i in range(1, count):
            expected += between.replace(names[told], names[i - 1 + told]) + marks[i]
        text = template(marks[:count], names[:count])
        if text != expected + after.replace(names[0], names[count - 1]):
            raise DataError(
                f"the template {_name(template)} must put the same text around all items but for their titles, each "
                f"beside its item; of {count} items it made {text!r}. Write other prompts to gr.models.Prompt yourself"
            )
    titles = [*titles, ""]
    around = [_around(template, template(marks[:1], [title])) for title in titles]
    pairs = ((names[0], title) if of_second else (title, names[0]) for title in titles)
    first, last = _special(tokenizer)
    tables = (
        _table(tokenizer, [text for text, _ in around], first, []),
        _table(tokenizer, [_between(template, pair) for pair in pairs], [], []),
        _table(tokenizer, [text for _, text in around], [], last),
    )
    largest = max(int(table.max(initial=-1)) for table in tables)
    return TitledPieces(*tables, of_second=of_second, num_text_tokens=largest + 1)


def _around(template: Template, text: str) -> tuple[str, str]:
    """What a template wrote before and after one item, the first of the marks."""
    if text.count(_MARKS[0]) != 1:
        raise DataError(
            f"the template {_name(template)} must write every item once: of one item {_MARKS[0]!r} it made {text!r}"
        )
    before, _, after = text.partition(_MARKS[0])
    return before, after


def _between(template: Template, titles: Sequence[str]) -> str:
    """What a template writes between two items of these titles."""
    text = template(_MARKS[:2], titles)
    _, _, rest = text.partition(_MARKS[0])
    between, found, _ = rest.partition(_MARKS[1])
    if not found:
        raise DataError(
            f"the template {_name(template)} must write every item once, in their order: of two items {_MARKS[:2]!r} "
            f"it made {text!r}"
        )
    return between


def _table(
    tokenizer: "tokenizers.Tokenizer", texts: Sequence[str], first: list[int], last: list[int]
) -> np.ndarray:
    """Texts as rows of tokens `[N, S]` int32, right-padded with -1, with tokens before and after each."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    rows = [[*first, *row.ids, *last] for row in encoded]
    table = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    return table


def _special(tokenizer: "tokenizers.Tokenizer") -> tuple[list[int], list[int]]:
    """Tokens that a tokenizer puts before and after any text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    ids = tokenizer.encode("a").ids
    start = next(i for i in range(len(ids) + 1) if ids[i : i + len(bare)] == bare)
    return ids[:start], ids[start + len(bare) :]


def _name(template: Template) -> str:
    return getattr(template, "__name__", repr(template))
