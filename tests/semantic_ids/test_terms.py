"""The terms of texts in any script."""

import itertools
import string

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from gr.semantic_ids import text_vectors
from gr.semantic_ids.terms import terms


@hypothesis.given(
    st.text(string.printable + "\u2122\u00ae\u2014\u2019\u00b0\u00bd", max_size=60)
    | st.lists(st.sampled_from("the a Red SHOE of red-shoe 12 x y_z".split())).map(" ".join)
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_english_has_the_terms_of_scikit_learn(text):
    options = {"ngram_range": (1, 2), "stop_words": "english", "strip_accents": "unicode"}
    expected = TfidfVectorizer(**options).build_analyzer()(text)
    # A sign such as the trade mark's becomes letters, here in small ones.
    assert [t for t in terms(text) if not t.startswith("\0")] == [t.lower() for t in expected]


def whole_words(text):
    return [term for term in terms(text) if not term.startswith("\0") and " " not in term]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("काला जूता", ["काला", "जूता"]),  # Vowel signs belong to their word.
        ("ガラス 工房", ["ガラス", "工房"]),
        ("ｶﾞﾗｽ", ["ガラス"]),
        ("Ａｍａｚｏｎ 𝐒𝐚𝐥𝐞", ["amazon", "sale"]),
        ("iPhone手机壳 64GB", ["iphone", "手机壳", "64gb"]),
        ("เสื้อ\u200bผ้า", ["เสื้อ", "ผ้า"]),
        ("क्\u200dष", ["क्ष"]),
        ("co\u00adoperate", ["cooperate"]),
        ("йод", ["йод"]),
        ("café cafe\u0301", ["cafe", "cafe"]),
        ("كَتَبَ", ["كتب"]),
    ],
)
def test_words_of_other_scripts(text, words):
    assert whole_words(text) == words


def test_characters_beside_words():
    assert terms("红色鞋") == [
        "红色鞋",
        *("\0" + part for part in ("红", "色", "鞋", "红色", "色鞋")),
    ]
    assert terms("хлебы") == ["хлебы", "\0хле", "\0леб", "\0ебы"]
    assert terms("año") == ["ano", "\0año"]
    assert terms("🎧🔥 ❤️") == ["\0🎧", "\0🔥", "\0❤"]
    assert terms("!!!") == ["\0!!!"]
    assert terms("") == terms(" ") == terms("x") == terms("the") == []


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("ガラス 工房", "カラス 工房"),  # Glass, crow.
        ("كَتَبَ", "كُتُب"),  # They wrote, books.
        ("йод", "иод"),
        ("хлеб", "хлёб"),
        ("ใกล้", "ไกล"),  # Near, far.
        ("คา", "ค่า"),
        ("का", "की"),
        ("שָׁנָה", "שֵׁנָה"),  # Year, sleep.
        ("bàn", "bán"),  # Table, sell.
        ("año", "ano"),
        ("バス", "パス"),  # Bus, pass.
        ("가방", "각방"),
        ("🎧", "🔥"),
        ("!!!", "???"),
    ],
)
def test_different_words_have_different_vectors(left, right):
    vectors = text_vectors([left, right, "red shoe", "blue shoe"], 8, 0)
    assert vectors.any(axis=1).all()
    assert vectors[0] @ vectors[1] < 0.9


@pytest.mark.parametrize("separator", ["", " "])
@pytest.mark.parametrize(
    "parts",
    [
        ("红蓝绿黑白", "色大小新旧", "鞋帽衣裤袜"),
        (
            "赤青緑黒白",
            ["い", "小", "大", "新", "古"],
            ["くつ", "ぼうし", "ふく", "ズボン", "かばん"],
        ),
        (
            ["สีแดง", "สีดำ", "สีขาว", "เขียว", "เหลือง"],
            ["ใหญ่", "เล็ก", "ใหม่", "เก่า", "ยาว"],
            ["รองเท้า", "หมวก", "เสื้อ", "กางเกง", "กระเป๋า"],
        ),
        (
            ["लाल", "नीला", "हरा", "काला", "सफेद"],
            ["बड़ा", "छोटा", "नया", "पुराना", "लंबा"],
            ["जूता", "टोपी", "कमीज", "पैंट", "थैला"],
        ),
    ],
    ids=["Chinese", "Japanese", "Thai", "Hindi"],
)
def test_every_title_of_a_catalogue_is_told_apart(parts, separator):
    titles = [separator.join(("商品", *chosen)) for chosen in itertools.product(*parts)]
    vectors = text_vectors(titles, 16, 0)
    assert len(np.unique(vectors.round(5), axis=0)) == len(titles) == 125
    # Titles with two parts in common are nearer than those with none.
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[-1] + 0.1
