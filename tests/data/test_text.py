"""Entities, tags and page scripts go; whatever merely looks like them stays."""

import hypothesis
import hypothesis.strategies as st
import pytest

from gr.data import DataError
from gr.data.text import as_text, clean_text, without_markup


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AT&amp;T &quot;x&quot;", 'AT&T "x"'),
        ("Black &amp;amp; Decker", "Black & Decker"),
        ("&#39;s &#x27;s", "'s 's"),
        ('<span class="a-size-medium">Pen</span>', "Pen"),
        ("one<br>two<BR />three", "one two three"),
        ("<p>One</p><p>Two</p>", "One Two"),
        ("H<sub>2</sub>O", "H2O"),
        ("<a href=x>link</a>", "link"),
        ("<img src=\"a>b\" alt='x'> y", "y"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ('Pen <span class="a-si', "Pen"),
        ("Pen<!-- note -->", "Pen"),
        ("<!-- .a {color: red} .b {margin: 0} Pen", "Pen"),
        (
            ".STYLE1 {color: #009900;}div.a > b{ font-size:1px }hr.x {border: 0} Pen {new}",
            "Pen {new}",
        ),
        ("<!DOCTYPE html><html><body>Pen</body></html>", "Pen"),
        ("<style>.a{margin:0}</style>Pen", "Pen"),
    ],
)
def test_markup_goes(text, expected):
    assert clean_text(text) == without_markup(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("I <3 NY", "a < b", "x > y", "1<2>0", "<>", "a<b and b>c", "a<b and c=d>e", "5 <p"),
        *("<a_1><b_2><c_3>", "<o:p>", "R&D, Q&A", "Rock&Roll", "Function (Mathematics)", "5 & 6"),
        *("Window. A novel", "#1 Dad {mug}", "Variation = theme", "The body: a guide {new}"),
        *("Box {color: red}", "p {value}", "Time {max: 3}ly", "<!-- Pen"),
    ],
)
def test_what_is_no_markup_stays(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    "code",
    [
        "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();",
        "Pens var ue_t0 = (new Date()).getTime();",
        "<script>var x = 1;</script>",
        "<script type='text/javascript'>alert(1)",
        '<style type="text/css">\n.a { margin: 0 }\n</style>',
        ".a-box, #b{margin:0}",
        "@media print { }",
        "function f(a) { return a; }",
        "(function(){})()",
        "$(document).ready(f)",
        "window.ue && ue()",
        'class="a-keyvalue prodDetTable"',
    ],
)
def test_a_page_script_or_style_is_no_text(code):
    assert clean_text(code) == without_markup(code) == ""


def test_one_line_of_characters():
    assert clean_text(" a\n\tb \x1b[0m \ud800") == "a b [0m \ufffd"
    assert without_markup(" a\n b ") == " a\n b "  # Tables keep their white space.


@hypothesis.given(st.text(st.sampled_from("<>&;/= \"'!-abpsr3#amltgquoti{}"), max_size=40))
@hypothesis.settings(max_examples=300, deadline=None)
def test_what_is_clean_stays_clean(text):
    once = clean_text(text)
    assert "\n" not in once and once == once.strip()
    if not any(char in text for char in "<&{"):
        assert once == " ".join(text.split())


def test_text_of_values():
    assert as_text([["A", "B"], [], None, "C\n D"]) == "A, B, C D"
    assert as_text({"Color": "red", "n": 2}) == "Color: red, n: 2"
    assert as_text(None) == as_text(float("nan")) == ""
    assert as_text(b"caf\xc3\xa9") == "caf\xe9"
    deep = "x"
    for _ in range(30):
        deep = [deep]
    with pytest.raises(DataError, match="nested deeper"):
        as_text(deep)
