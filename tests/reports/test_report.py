"""The report: its sections, its verdict, what it escapes, and that it stands alone."""

import dataclasses
import html.parser
import re
from collections import Counter

import numpy as np
import pytest

from gr.evaluation.rankings import EvaluationError
from gr.reports.plots import THEME
from gr.reports.report import (
    Candidate,
    Example,
    ReportData,
    best_step,
    codebook_facts,
    render_report,
    verdict,
    write_report,
)

VOID = {"meta", "br", "link", "img", "hr", "input"}
SECTIONS = ("metrics", "slices", "curves", "prefix", "codebooks", "users", "run")
ODD_TITLE = "Pens <b>bold</b> & \"quotes\" 'n' &amp; 日本 $x$"


class Page(html.parser.HTMLParser):
    """Collects elements and text, and refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, tag, **attributes):
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in attributes.items())
        ]


def _row(ndcg, **more):
    values = {"users": 900, "hit@5": ndcg, "hit@10": 2 * ndcg, "ndcg@5": ndcg / 2, "ndcg@10": ndcg}
    values |= {"mrr@10": ndcg / 2, "item_hit@10": ndcg, "coverage@10": 0.5, "gini@10": 1 - ndcg}
    values |= {"novelty@10": 9.0, "head/ndcg@10": ndcg, "torso/ndcg@10": ndcg, "tail/ndcg@10": 0.0}
    values |= {"head/users": 500, "torso/users": 300, "tail/users": 100}
    return values | {"intervals": {"ndcg@10": [ndcg - 0.01, ndcg + 0.01]}} | more


def _data(**changes):
    data = ReportData(
        title="run 7",
        dataset={"name": "toy", "users": 4905, "items": 2420, "interactions": 53258},
        model={"backbone": "encoder_decoder", "parameters": 13_271_000},
        metrics={
            "model": _row(0.06),
            "item-kNN": _row(0.04),
            "popularity": _row(0.01),
        },
        main_row="model",
        rule="seen items removed",
        variants={"all items allowed": {"model": _row(0.05), "item-kNN": _row(0.09)}},
        notes=["Warning: 9 of 900 targets are seen.", "One thing more."],
        differences={
            "item-kNN": {"ndcg@10": [0.02, 0.01, 0.03], "hit@10": [0.04, -0.01, 0.09]},
            "popularity": {"ndcg@10": [0.05, 0.04, 0.06]},
        },
        curves=[
            {"step": 10, "split": "train", "values": {"loss": 3.0, "learning_rate": 0.1}},
            {"step": 10, "split": "validation", "values": {"loss": 3.0, "ndcg@10": 0.055}},
            {"step": 20, "split": "validation", "values": {"loss": 3.5, "ndcg@10": 0.058}},
            {"step": 30, "split": "validation", "values": {"loss": 4.0, "ndcg@10": 0.057}},
        ],
        prefix_recall={"beam": [0.6, 0.3, 0.2, 0.15]},
        num_beams=20,
        codebooks=[
            {"size": 4, "counts": np.array([2, 2, 0, 0])},
            {"size": 4, "counts": [1, 1, 1, 1]},
        ],
        collisions={"items": 4, "distinct SIDs": 3},
        examples=[
            Example(
                "u1",
                ["First", ODD_TITLE],
                "Target thing",
                [
                    Candidate("Other thing", -1.25, detail="Office > Pens", seen=True),
                    Candidate("Target thing", -2.5, is_target=True),
                    Candidate("", float("-inf"), valid=False),
                ],
            ),
            Example("u2", ["First"], "Missed thing", [Candidate("Other thing", -0.5)]),
        ],
        config={"model": {"width": np.int64(128)}, "where": ODD_TITLE},
        versions={"jax": "0.10.2"},
        commands=["python -m experiments.train --config=configs/toy.py"],
        date="2025-01-31",
        revision="abc1234",
    )
    return dataclasses.replace(data, **changes)


@pytest.fixture(scope="module")
def source():
    return render_report(_data())


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_every_section_is_there_in_order_and_linked(page):
    assert tuple(attrs["id"] for attrs in page.all("section")) == SECTIONS
    links = [attrs["href"] for attrs in page.all("a")]
    assert links == [f"#{name}" for name in SECTIONS]
    assert page.all("p", **{"class": "absent"}) == []


def test_header_and_footer_say_what_was_run(page):
    for text in (
        "run 7",
        "4,905",
        "53,258",
        "13,271,000",
        "encoder_decoder",
        "2025-01-31",
        "abc1234",
    ):
        assert text in page.text
    for text in ("python -m experiments.train", "0.10.2", '"width": 128', "Resolved configuration"):
        assert text in page.text


def test_metrics_table_highlights_the_best_and_shows_intervals(source, page):
    assert "0.0600 0.0500– 0.0700" in page.text
    source, both, other = re.split(
        ">Both rules side by side<|>All metrics, all items allowed<", source
    )
    best = re.findall(r'<td class="best"><span class="value">([\d.]+)', source)
    # Hit@5, Hit@10, NDCG@5, NDCG@10, MRR, item Hit of the model; coverage and novelty are equal in
    # all three rows; the Gini index is best where it is lowest.
    assert best[:9] == [
        "0.0600",
        "0.1200",
        "0.0300",
        "0.0600",
        "0.0300",
        "0.0600",
        "0.5000",
        "0.9400",
        "9.00",
    ]
    assert len(best) == 9 + 2 * 2
    # Under the other rule the best is another one, though the model under this rule is below it.
    assert re.findall(r'<td class="best"><span class="value">([\d.]+)', both) == [
        *("0.0600", "0.1200"),
        *("0.0900", "0.1800"),
    ]
    best = re.findall(r'<td class="best"><span class="value">([\d.]+)', other)
    assert best[:4] == ["0.0900", "0.1800", "0.0450", "0.0900"]  # item-kNN's, which comes first.
    assert "Hit @5" in page.text and "Hit @20" not in page.text  # No row has hit@20.


def test_rows_are_best_first_by_each_rule():
    data = _data()
    shuffled = {name: data.metrics[name] for name in ("popularity", "model", "item-kNN")}
    shuffled["not ranked"] = {"users": 900}
    differences = {name: data.differences[name] for name in ("popularity", "item-kNN")}
    source = render_report(_data(metrics=shuffled, differences=differences))
    names = r'<th scope="row">(?:<[^>]*>)*([^<]+)'
    main, others = source.split(">All metrics, all items allowed<")
    metrics, both = main.split(">Both rules side by side<")
    best_first = ["model", "item-kNN", "popularity", "not ranked"]
    assert re.findall(names, metrics) == re.findall(names, both) == best_first
    assert re.findall(names, others)[:4] == ["item-kNN", "model", "item-kNN", "popularity"]


def test_the_verdict_leaves_out_what_the_main_row_is_made_of():
    rows = _data().metrics | {"model alone": _row(0.055)}
    assert "the best baseline is model alone" in verdict(_data(metrics=rows))
    told = verdict(_data(metrics=rows, parts=["model alone"]))
    assert "above every baseline; the best baseline is item-kNN" in told
    page = Page(render_report(_data(metrics=rows, parts=["model alone"]))).text
    assert told in page and "model alone 0.0550" in page


def test_rules_are_named_and_the_warning_stands_at_the_top(page):
    assert "NDCG@10 0.0600 [0.0500, 0.0700] (seen items removed), above every baseline" in page.text
    assert "Each column is one rule: compare rankers down a column." in page.text
    (warning,) = page.all("p", **{"class": "warning"})
    assert page.text.index("Warning: 9 of 900") < page.text.index("Metrics beside baselines")
    assert "One thing more." in page.text


def test_both_rules_stand_side_by_side(page):
    _, text = page.text.split("Both rules side by side")
    table, _ = text.split("Each column is one rule")
    header = "NDCG@10 seen items removed NDCG@10 all items allowed NDCG@10 change"
    assert header in table and header.replace("NDCG", "Hit") in table
    # The model loses 0.01, item-kNN wins 0.05; popularity was ranked by the first rule alone.
    assert "model 0.0600 0.0500 −0.0100 0.1200 0.1000 −0.0200" in table
    assert "item-kNN 0.0400 0.0900 +0.0500 0.0800 0.1800 +0.1000" in table
    assert "popularity 0.0100 – – 0.0200 – –" in table
    one_rule = Page(render_report(_data(variants={}))).text
    assert "side by side" not in one_rule and "All metrics," not in one_rule


def test_the_sentence_on_lost_targets_is_that_of_the_main_rule():
    def text_with(**recall):
        shares = {name.replace("_", " "): of for name, of in recall.items()}
        return Page(render_report(_data(prefix_recall=shares))).text

    # Of 100 targets 12 are hit; the losses are 40, 30, 10, 5 and, in the ranking, 3.
    first = [0.6, 0.3, 0.2, 0.15]
    text = text_with(all_items_allowed=[0.1] * 4, seen_items_removed=first)
    sentence = "88% of targets are not in the first 10: the largest loss is at code 1, where 40% leave the 20 beams."
    assert f"Where targets are lost: {sentence}" in text
    assert text.index("above every baseline") < text.index(sentence)
    # Of runs beside each other, this one is the first.
    text = text_with(**{"ce, seen items removed": [0.9], "apao, seen items removed": [0.1]})
    assert "78% are in the 20 beams but below rank 10" in text
    assert "Where targets are lost" not in text_with(beam=first)  # Of no rule.


def test_further_users_are_folded_away_and_can_be_searched():
    users = [Example(f"u{n}", [], "t", [Candidate("t", 0.0, is_target=n == 3)]) for n in range(20)]
    source = render_report(ReportData("t", examples=users))
    page = Page(source)
    outcomes = [attrs["data-outcome"] for attrs in page.all("article")]
    assert outcomes == ["missed"] * 3 + ["found"] + ["missed"] * 16
    shown, folded = source.split("8 further users</summary>")
    assert "User u11<" in shown and "User u12<" not in shown and "User u19<" in folded
    (form,) = page.all("form")
    assert "hidden" in form  # Until the script finds it.
    assert page.text.count("User u") == 20


def test_differences_are_marked_by_their_interval(page):
    assert "▲ +0.0200" in page.text  # The interval of NDCG@10 lies above 0.
    assert "≈ +0.0400" in page.text  # That of Hit@10 holds 0.
    assert "+50%" in page.text  # 0.02 of item-kNN's 0.04.


def test_users_are_shown_with_target_and_flags(source, page):
    assert "The target is among the candidates of 1 of 2 users, evenly spaced." in page.text
    assert "✓ rank 2" in page.text and "✗ not in the 1" in page.text and "Missed thing" in page.text
    assert "Office > Pens" in page.text and "−1.25" in page.text
    assert source.count('<tr class="target">') == 1
    assert source.count("✓ target</span>") == source.count(">seen</span>") == 1
    assert source.count(">invalid</span>") == 1
    history = source[source.index('<ol class="history">') :]
    assert history.index("First") < history.index("Pens")


def test_learning_curves_name_the_best_step(page):
    assert "Best step: 20, validation NDCG@10 0.0580." in page.text
    assert "(test)" not in page.text and "Horizontal line" not in page.text
    with_line = Page(render_report(_data(references={"markov (validation)": 0.05})))
    assert "markov (validation)" in with_line.text and "Horizontal line" in with_line.text


def test_prefix_recall_names_the_code_that_loses_most(page):
    assert "the largest drop is at code 1, 40.0% of users" in page.text
    assert "60.0% 30.0% 20.0% 15.0%" in page.text


def test_strings_are_escaped(source, page):
    assert page.text.count(ODD_TITLE) == 1
    assert "<b>" not in source
    hostile = "</style><script>alert(1)</script>"
    example = Example(
        hostile, [hostile], hostile, [Candidate(hostile, 0.0, detail=hostile)], hostile
    )
    metrics = {hostile: _row(0.1)}
    rendered = render_report(
        _data(
            title=hostile,
            dataset={hostile: hostile},
            model={hostile: hostile},
            metrics=metrics,
            main_row=hostile,
            rule=hostile,
            variants={hostile + "2": metrics},
            notes=[hostile],
            differences={hostile: {"ndcg@10": [0.1, 0.0, 0.2]}},
            references={hostile: 0.1},
            prefix_recall={hostile: [0.5]},
            collisions={hostile: hostile},
            examples=[example],
            config={hostile: hostile},
            versions={hostile: hostile},
            commands=[hostile],
            date=hostile,
            revision=hostile,
        )
    )
    assert rendered.count("<script") == rendered.count("</script") == 1  # That of the page.
    assert rendered.count("</style>") == 1 + rendered.count("<style type=")
    assert hostile in Page(rendered).text


def test_nothing_is_loaded_from_elsewhere(source, page):
    for tag, attrs in page.elements:
        assert tag not in {"link", "iframe", "object", "img", "base", "embed"}
        for name, value in attrs.items():
            if name in {"src", "href", "xlink:href", "data", "action", "srcset", "poster"}:
                assert value.startswith("#")
    assert "@import" not in source
    assert page.all("script") == [{}]
    (script,) = re.findall("<script>(.*?)</script>", source, re.S)
    assert not re.search(r"https?:|\bimport\b|fetch\(|XMLHttpRequest|innerHTML|eval\(", script)
    assert set(re.findall(r"url\((.)", source)) <= {"#"}
    assert len(source.encode()) < 2_000_000


def test_ids_are_unique_and_references_resolve(source, page):
    ids = Counter(attrs["id"] for _, attrs in page.elements if "id" in attrs)
    assert [name for name, count in ids.items() if count > 1] == []
    referred = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"|labelledby="([^"]+)"', source)
    assert {name for names in referred for name in names if name} <= set(ids)


def test_plots_have_text_alternatives_and_tables_have_headers(page):
    images = page.all("div", role="img")
    assert len(images) == len(page.all("div", **{"class": "plot"})) == len(page.all("svg")) == 8
    assert all(len(image["aria-label"]) > 20 for image in images)
    assert all(attrs.get("scope") in {"col", "row", "rowgroup"} for attrs in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("meta", name="viewport") != []


def _themes(source):
    light, dark = re.findall(r":root \{(.*?)\}", source, re.S)[:2]
    return [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", text)) for text in (light, dark)]


def _contrast(one, other):
    """Contrast ratio of two colours (Web Content Accessibility Guidelines 2.2)."""

    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_both_themes(source):
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    for theme in _themes(source):
        assert set(THEME) <= set(theme)  # Plots change with the page.
        for text in ("ink", "muted", "good", "bad", "blue"):
            assert all(_contrast(theme[text], theme[back]) >= 4.5 for back in ("card", "page"))


def test_light_theme_has_the_colours_of_the_plots(source):
    light = _themes(source)[0]
    assert {name: light[name] for name in THEME} == THEME
    for name, colour in THEME.items():  # None of them is drawn but through its variable.
        assert source.count(colour) == source.count(f"var(--{name}, {colour})") + 1


OPTIONAL = {
    "dataset": "No description of the data set",
    "model": "No description of the model",
    "metrics": "No metrics",
    "differences": "No paired differences",
    "curves": "No learning curves",
    "prefix_recall": "No prefix recall",
    "codebooks": "No codebooks",
    "collisions": "Collisions were not counted",
    "examples": "No users",
    "config": "No configuration",
    "versions": "No versions",
    "commands": "No commands",
    "date": "date not recorded",
    "revision": "revision not recorded",
}


@pytest.mark.parametrize("parts", [list(OPTIONAL)[start::4] for start in range(4)])
def test_missing_parts_are_named_and_no_other(parts):
    empty = ReportData("t")
    changes = {part: getattr(empty, part) for part in parts}
    if "metrics" in parts:
        changes |= {"variants": {}, "differences": {}}
    text = Page(render_report(_data(**changes))).text
    named = [part for part, sentence in OPTIONAL.items() if sentence in text]
    if (
        "metrics" in parts
    ):  # Without metrics there are no slices either, and no differences to miss.
        assert "No slices" in text
    assert named == parts


def test_a_title_alone_makes_a_report():
    page = Page(render_report(ReportData("only <this>")))
    assert "only <this>" in page.text and page.all("svg") == []
    assert tuple(attrs["id"] for attrs in page.all("section")) == SECTIONS


def test_numbers_that_are_not_finite_are_shown_as_a_dash():
    metrics = {"model": _row(float("nan")), "popularity": _row(0.01, novelty=None)}
    data = _data(metrics=metrics, differences={"popularity": {}})
    page = Page(render_report(data))
    assert verdict(data) == "No NDCG@10 of the model was measured, so there is no verdict."
    assert "–" in page.text


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {},
            "NDCG@10 0.0600 [0.0500, 0.0700], above every baseline; the best baseline is item-kNN (0.0400, +50%).",
        ),
        (
            {"differences": {"item-kNN": {"ndcg@10": [0.02, -0.01, 0.05]}}},
            "NDCG@10 0.0600 [0.0500, 0.0700], above every baseline, but the difference to item-kNN is not significant; "
            "the best baseline is item-kNN (0.0400, +50%).",
        ),
        (
            {"main_row": "item-kNN", "differences": {}},
            "NDCG@10 0.0400 [0.0300, 0.0500], below model (0.0600, −33%) by 0.0200.",
        ),
        (
            {"main_row": "popularity", "differences": {}},
            "NDCG@10 0.0100 [0.0000, 0.0200], below model (0.0600, −83%) by 0.0500. It is below 2 of 2 baselines.",
        ),
        (
            {
                "main_row": "popularity",
                "metrics": {"model": _row(0.06), "popularity": _row(0.05)},
                "differences": {"model": {"ndcg@10": [-0.01, -0.02, 0.001]}},
            },
            "NDCG@10 0.0500 [0.0400, 0.0600], below model (0.0600, −17%) by 0.0100. "
            "The difference is not significant at 95%.",
        ),
        (
            {"metrics": {"model": {"ndcg@10": 0.06}}, "differences": {}},
            "NDCG@10 0.0600; no baseline was evaluated beside it.",
        ),
        (
            {"metrics": {"model": _row(0.06), "pop": _row(0.0)}, "differences": {}},
            "NDCG@10 0.0600 [0.0500, 0.0700], above every baseline; the best baseline is pop (0.0000).",
        ),
    ],
)
def test_verdict(changes, sentence):
    assert verdict(_data(rule="", **changes)) == sentence


def test_tone_follows_the_verdict():
    def tone(**changes):
        short = {"curves": (), "prefix_recall": {}, "codebooks": (), "examples": ()}
        return re.search(r'class="verdict (\w+)"', render_report(_data(**short, **changes)))[1]

    assert tone() == "above"
    assert tone(main_row="popularity", differences={}) == "below"
    assert tone(differences={"item-kNN": {"ndcg@10": [0.02, -0.01, 0.05]}}) == "level"


def test_best_step_is_given_or_read_off_the_curves():
    assert best_step(_data()) == 20
    assert best_step(_data(best_step=30)) == 30
    losses = [
        {"step": s, "split": "validation", "values": {"loss": v}}
        for s, v in ((1, 3), (2, 1), (3, 2))
    ]
    assert best_step(_data(curves=losses)) == 2
    assert best_step(_data(curves=[])) is None


def test_codebook_facts():
    facts = codebook_facts({"counts": [2, 2, 0, 0]})
    assert facts == {"size": 4, "used": 2, "perplexity": pytest.approx(2), "largest_share": 0.5}
    assert codebook_facts({"counts": [0, 0]})["perplexity"] == 0
    report = {"level": 0, "size": 256, "used": 200, "perplexity": 150.0, "largest_share": 0.1}
    assert codebook_facts(report)["used"] == 200


def test_codebooks_without_counts_keep_their_table():
    book = {"level": 0, "size": 256, "used": 200, "perplexity": 128.0}
    page = Page(render_report(_data(codebooks=[book])))
    assert "256 200 128.0 50% –" in page.text
    assert len(page.all("svg")) == 7


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"main_row": "modle"}, "main_row names 'modle'"),
        ({"differences": {"y": {}}}, "differences names 'y'"),
    ],
)
def test_names_that_are_no_row_are_refused(changes, match, tmp_path):
    path = tmp_path / "report.html"
    with pytest.raises(EvaluationError, match=match):
        write_report(path, _data(**changes))
    assert not path.exists()


def test_write_report_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "new" / "report.html"
    data = ReportData("run", prefix_recall={"beam": [0.5]})
    assert write_report(path, ReportData("old")) == path
    assert write_report(str(path), data) == path
    assert path.read_text(encoding="utf-8") == render_report(data)  # Same data, same file.
    assert list(path.parent.iterdir()) == [path]


def test_a_report_in_an_object_store(bucket):
    write_report("gs://bucket/run/report.html", ReportData("run"))
    assert bucket()["run/report.html"].decode() == render_report(ReportData("run"))


def test_half_of_a_surrogate_pair_does_not_stop_the_report(tmp_path):
    path = write_report(tmp_path / "report.html", ReportData("broken \ud83d title"))
    assert "broken ? title" in path.read_text(encoding="utf-8")
