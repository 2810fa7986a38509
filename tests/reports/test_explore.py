"""The script of the pages: its functions by node, and whole pages in a browser, where these are installed."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gr.reports import render_comparison
from gr.reports.plots import figure_to_svg, prefix_recall_plot
from gr.reports.report import Candidate, Example, ReportData, render_report

SCRIPT = Path(__file__).parents[2] / "gr/reports/explore.js.jinja"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def called(expression):
    """The value of an expression in the script's functions, by node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the script's functions are not run")
    program = f"{SCRIPT.read_text()}\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run([node, "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_cells_sort_by_their_leading_number():
    cells = {
        "0.0757": 0.0757,
        " 4,905 ": 4905,
        "▲ +0.0752": 0.0752,
        "▼ \N{MINUS SIGN}0.5": -0.5,
        "≈ +0.0028": 0.0028,
        "48.9%": 48.9,
        "[0.07, 0.08]": 0.07,
        "0.0312 ± 0.0010": 0.0312,
        "750, 600": 750,
        "3 of 3": 3,
        "1e-05": 1e-5,
        "item_knn": "item_knn",
        "–": None,
        "  ": None,
    }
    assert called(f"{json.dumps(list(cells))}.map(sortKey)") == list(cells.values())


def test_rows_are_ordered_with_ties_kept_and_empty_cells_last():
    keys = [2, None, 1, 3, 1, None]
    assert called(f"orderOf({json.dumps(keys)}, false)") == [2, 4, 0, 3, 1, 5]
    assert called(f"orderOf({json.dumps(keys)}, true)") == [3, 0, 2, 4, 1, 5]
    names = ["seed 10", "b", "Seed 2", "a"]
    assert called(f"orderOf({json.dumps(names)}, false)") == [3, 1, 2, 0]


def test_clicks_go_through_three_orders():
    cycle = '["none", "descending", "ascending"].map((order) => nextOrder(order, {}))'
    assert called(cycle.format("true")) == ["descending", "ascending", "none"]
    assert called(cycle.format("false")) == ["ascending", "none", "descending"]


def test_a_search_wants_every_word_in_any_order():
    text = "User 42 Next item: Blue Pens, Café"
    for query, found in (
        ("", True),
        ("PENS blue", True),
        ("42", True),
        ("café", True),
        ("pens red", False),
    ):
        assert called(f"matches({json.dumps(text)}, {json.dumps(query)})") is found


def test_the_nearest_mark_is_in_pixels_and_a_box_is_near_from_inside():
    marks = [
        ["a", [["one", 0.1, 0.5], ["two", 0.9, 0.5]]],
        ["bar", [["three", 0.8, 0.2, 0, 0.1, 0.8, 0.3]]],
    ]
    start = f"nearest(marksOf({json.dumps(json.dumps(marks))})"
    # 1,000 by 100 pixels: (0.45, 0.5) is 350 from the first mark, 450 from the second, 20 below the bar.
    assert called(f"{start}, 450, 50, 1000, 100)") == 2
    assert called(f"{start}, 100, 49, 1000, 100)") == 0
    assert called(f"{start}, 100, 15, 1000, 100)") == 2
    assert called(f"{start}, 1000, 50, 1000, 100)") == 1
    assert called("nearest([], 1, 1, 9, 9)") == -1
    (first, *_) = called(f"marksOf({json.dumps(json.dumps(marks))})")
    assert first == {"heading": "a", "text": "one", "place": [0.1, 0.5], "box": []}


# A page in a browser.


def page():
    users = [
        Example(
            f"u{n}", ["A pen"], f"Thing {n}", [Candidate(f"Thing {n % 3}", 0.0, is_target=n == 1)]
        )
        for n in range(15)
    ]
    rows = {
        name: {"ndcg@10": v, "hit@10": 2 * v} for name, v in (("a", 0.2), ("c", 0.1), ("b", 0.3))
    }
    data = ReportData(
        "run", metrics=rows, main_row="b", prefix_recall={"rule": [0.5, 0.25]}, examples=users
    )
    return render_report(data)


def after(source, actions, tmp_path):
    """The elements' text that the actions, JavaScript that fills `said`, find in the page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed: the page is not opened")
    told = f'<pre id="said"></pre><script>{{const said = []; {actions}; '
    told += 'document.getElementById("said").textContent = JSON.stringify(said);}</script></body>'
    path = tmp_path / "page.html"
    path.write_text(source.replace("</body>", told), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (said,) = re.findall(r'<pre id="said">(.*?)</pre>', done.stdout, re.S)
    return json.loads(html.unescape(said))


def test_a_click_sorts_a_table_and_tells_the_order(tmp_path):
    actions = """
        const table = document.querySelector("#metrics table");
        const headers = [...table.tHead.rows[0].cells], buttons = [...table.querySelectorAll("thead button")];
        const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join("");
        said.push(headers.every((header) => header.children.length === 1), headers[1].textContent.trim());
        for (const [column, times] of [[0, 1], [1, 3]]) for (let i = 0; i < times; i++) {
          buttons[column].click();
          said.push([names(), ...headers.map((header) => header.getAttribute("aria-sort"))].slice(0, 3));
        }
    """
    found = after(page(), actions, tmp_path)
    assert found[0] is True and found[1].startswith("Hit@10")
    assert found[2:] == [
        ["abc", "ascending", None],
        ["bac", None, "descending"],
        ["cab", None, "ascending"],
        ["bac", None, None],
    ]


def test_the_search_shows_users_by_words_and_outcome(tmp_path):
    actions = """
        const form = document.querySelector("form.find"), [words, outcome] = form.elements;
        const more = document.querySelector("#users details");
        const search = (text, choice) => {
          words.value = text; outcome.value = choice;
          form.dispatchEvent(new Event("input"));
          const shown = [...document.querySelectorAll("article")].filter((user) => !user.hidden);
          said.push([shown.length, more.open, form.querySelector("output").textContent]);
        };
        said.push(form.hidden, more.open);
        search("u14 PEN", ""); search("", "found"); search("nothing like it", ""); search("", "");
    """
    assert after(page(), actions, tmp_path) == [
        *(False, False),
        [1, True, "1 of 15 users"],
        [1, True, "1 of 15 users"],
        [0, True, "0 of 15 users"],
        [15, False, ""],
    ]


def test_a_plot_tells_the_value_under_the_pointer_and_by_keys(tmp_path):
    actions = """
        const plot = document.querySelector("#prefix .plot"), frame = plot.querySelector("svg").getBoundingClientRect();
        const tip = plot.querySelector(".tip");
        said.push(tip.hidden, plot.tabIndex, tip.getAttribute("role"));
        const at = { clientX: frame.right, clientY: frame.bottom, pointerType: "mouse" };
        plot.dispatchEvent(new PointerEvent("pointermove", at));
        said.push(tip.textContent);
        plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
        said.push(tip.textContent);
        plot.dispatchEvent(new PointerEvent("pointerleave", at));
        said.push(tip.hidden);
    """
    axis = "prefix in beam (% of users)"
    assert after(page(), actions, tmp_path) == [
        *(True, 0, "status"),
        f"codes decoded 2 · rule{axis}: 25",
        f"codes decoded 1 · rule{axis}: 50",
        True,
    ]


def test_a_narrow_screen_says_that_a_table_scrolls(tmp_path):
    wide = [["run", *map(str, range(60))], ["a", *["0.1234"] * 60], ["b", *["0.2"] * 60]]
    tables = [("wide", wide), ("narrow", [["run", "x"], ["a", "1"], ["b", "2"]])]
    source = render_comparison(title="t", notes=[], tables=tables, figures={})
    actions = """said.push([...document.querySelectorAll("p.more")].map((told) => told.hidden));
        const scroll = document.querySelector(".scroll"); said.push(scroll.scrollWidth > scroll.clientWidth)"""
    assert after(source, actions, tmp_path) == [[False, True], True]


def test_a_page_is_whole_without_its_script(tmp_path):
    svg = figure_to_svg(prefix_recall_plot({"a": [0.5]}))
    for source in (page(), render_comparison(title="t", notes=[], tables=[], figures={"f": svg})):
        without = re.sub(r"<script>.*?</script>", "", source, flags=re.S)
        said = 'said.push(document.body.innerText.replace(/\\s+/g, " "))'
        plain, full = (after(of, said, tmp_path)[0] for of in (without, source))
        added = "Search users and items Target found or missed found missed "
        assert plain.strip() and set(full.split()) - set(plain.split()) <= set(added.split())
        assert "<button" not in without  # Nothing to press that does nothing.
