"""What the documentation names exists: functions, tests, files that it links to."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))


def resolved(name):
    """The object of a dotted name; raises where there is none."""
    parts = name.split(".")
    found = importlib.import_module(".".join(parts[:2]))
    for place, part in enumerate(parts[2:], start=3):
        if isinstance(found, type(ast)) and not hasattr(found, part):
            found = importlib.import_module(".".join(parts[:place]))
        else:
            found = getattr(found, part)
    return found


def test_functions_of_the_methods_exist():
    names = re.findall(r"`(gr(?:\.\w+)+)`", (ROOT / "docs/methods.md").read_text())
    assert len(names) > 50
    for name in sorted(set(names)):
        assert callable(resolved(name)), name
    with pytest.raises(ImportError):
        resolved("gr.losses.no_such_loss")


def test_tests_of_the_methods_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/methods.md").read_text())
    assert len(named) > 50
    missing = [
        f"{path}::{test}"
        for path, test in sorted(set(named))
        if not (ROOT / path).is_file() or f"\ndef {test}(" not in (ROOT / path).read_text()
    ]
    assert not missing


def anchors(page):
    """Of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"
