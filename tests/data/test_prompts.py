"""Prompts: templates, tokenizers and names of semantic-ID tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from gr.data import DataError
from gr.data.prompts import (
    PromptPieces,
    encode_prompts,
    grow_tokenizer,
    id_names,
    item_texts,
    load_tokenizer,
    next_item,
    next_titled_item,
    prompt_pieces,
    titled_pieces,
    writes_titles,
)

TINY = "configs/checkpoints/qwen2_tiny"  # Merges bytes to pieces of words.
NAMES = id_names((3, 2))


def words(*extra):
    """A tokenizer of whole words."""
    vocab = {word: number for number, word in enumerate(("?", "bought", "next", ",", "a", *extra))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_names_are_those_of_published_files():
    assert NAMES == ["<gr_pad>", "<gr_bos>", "<a_0>", "<a_1>", "<a_2>", "<b_0>", "<b_1>"]
    assert item_texts(np.array([[2, 6], [4, 5]]), NAMES) == ["<a_0><b_1>", "<a_2><b_0>"]
    with pytest.raises(DataError, match="27 levels: there are names for 26"):
        id_names((2,) * 27)


def test_a_grown_tokenizer_numbers_semantic_ids_behind_the_text():
    tokenizer = words()
    grown = grow_tokenizer(tokenizer, 9, NAMES)  # The model has four more than the tokenizer.
    assert grown.encode("bought <a_2><b_0>, next").ids == [1, 9 + 4, 9 + 5, 3, 2]
    assert tokenizer.get_vocab_size() == 5
    with pytest.raises(DataError, match="has 5 tokens and the model 4 of text"):
        grow_tokenizer(tokenizer, 4, NAMES)
    with pytest.raises(DataError, match="knows <a_1> already, as number 5"):
        grow_tokenizer(words("<a_1>"), 9, NAMES)


def test_special_tokens_stand_around_the_whole_prompt():
    tokenizer = words("[S]", "[E]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[S] $A [E]", special_tokens=[("[S]", 5), ("[E]", 6)]
    )
    pieces = prompt_pieces(lambda items: f"bought {', '.join(items)} next", tokenizer)
    assert pieces == PromptPieces(before=(5, 1), between=(3,), after=(2, 6))
    tokens, lengths = encode_prompts(grow_tokenizer(tokenizer, 7, NAMES), ["bought <a_0>", "next"])
    assert tokens.tolist() == [[5, 1, 9, 6], [5, 2, 6, 0]] and lengths.tolist() == [4, 3]


items = st.lists(st.tuples(st.integers(2, 4), st.integers(5, 6)), min_size=1, max_size=4)
text = st.text("a ,.bought\n", max_size=6)


@settings(max_examples=40, deadline=None)
@given(items, text, text, text)
def test_pieces_are_the_tokens_of_the_whole_text(history, before, between, after):
    def template(items):
        return before + between.join(items) + after

    tokenizer = load_tokenizer(TINY)
    size = tokenizer.get_vocab_size()
    pieces = prompt_pieces(template, tokenizer)
    expected = list(pieces.before)
    for place, codes in enumerate(history):
        expected += [size + code for code in codes]
        expected += pieces.between if place + 1 < len(history) else pieces.after
    written = template(item_texts(np.array(history), NAMES))
    tokens, lengths = encode_prompts(grow_tokenizer(tokenizer, size, NAMES), [written])
    assert tokens[0].tolist() == expected and lengths.tolist() == [len(expected)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (lambda items: "nothing", "must write every item once"),
        (lambda items: items[0] + items[0], "must write every item once"),
        (lambda items: f"{len(items)} items: {items[0]}", "must put the same text before"),
        (lambda items: " ".join(reversed(items)), "must put the same text before"),
    ],
)
def test_templates_that_cannot_be_laid_out_are_refused(template, message):
    with pytest.raises(DataError, match=message):
        prompt_pieces(template, words())


def test_templates_with_titles_are_known_by_their_arguments():
    assert writes_titles(next_titled_item) and not writes_titles(next_item)
    assert not writes_titles(lambda history, sep=", ": sep.join(history))
    long = "word " * 40
    text = next_titled_item(["<a_0>", "<a_1>"], [long, ""])
    assert text.count("word") == 12 and ", <a_1>\n" in text


def beside(history, titles, sep="{title} {item}"):
    pairs = zip(titles, history, strict=True)
    return ", ".join(sep.format(title=title, item=item) for title, item in pairs)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (lambda items, titles: titles[0], "must write every item once"),
        (
            lambda items, titles: f"{items[0]} {titles[0]}",
            "must write every item once, in their order",
        ),
        (
            lambda items, titles: f"{', '.join(titles)}: {', '.join(items)}",
            "the same text around all items",
        ),
        (
            lambda items, titles: beside(items, titles, "{title} {item} {title}"),
            "it wrote two titles",
        ),
        (lambda items, titles: beside(items, titles) + str(len(items)), "the same text around all"),
    ],
)
def test_templates_with_titles_that_cannot_be_laid_out_are_refused(template, message):
    with pytest.raises(DataError, match=message):
        titled_pieces(template, words(), ["a", "b"])


def test_the_default_template_names_each_item_once():
    assert next_item(["x", "y"]).count("x, y") == 1 and prompt_pieces(next_item, words())
    assert not PromptPieces()


def test_files_that_are_no_tokenizers_are_told(tmp_path):
    with pytest.raises(DataError, match="tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer.json is no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="prompt 1 has no tokens: ''"):
        encode_prompts(words(), ["a", ""])
