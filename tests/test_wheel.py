"""What is installed: the library alone, with its templates and types, and nothing that needs the repository."""

import email
import json
import re
import zipfile
from pathlib import Path

import gr

ROOT = Path(__file__).parents[1]


def test_only_the_library_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    modules = {path for path in (ROOT / "gr").rglob("*") if path.suffix in (".py", ".jinja")}
    expected = {path.relative_to(ROOT).as_posix() for path in modules}
    assert names == expected | {"gr/py.typed"}
    assert {Path(name).parent.name for name in names if name.endswith(".jinja")} == {"reports"}


def test_its_name_version_and_licence(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(file.read(name))
        assert any(name.endswith("/LICENSE") for name in file.namelist())
    assert (metadata["Name"], metadata["Version"]) == ("gr-constrained", gr.__version__)
    assert metadata["License"] == "Apache-2.0"
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)", citation, re.M)[1] == gr.__version__
    assert f"## [{gr.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


ROOMS = """
import importlib, importlib.util, json, sys
import gr
at_once = sorted(sys.modules)
print(json.dumps({
    "file": gr.__file__,
    "at once": at_once,
    "rooms": [getattr(gr, room).__name__ for room in gr.ROOMS],
    "found": [name for name in ("experiments", "configs", "tests") if importlib.util.find_spec(name)],
}))
"""


def test_rooms_are_imported_when_they_are_used(installed_python):
    said = json.loads(installed_python("-c", ROOMS))
    assert str(ROOT) not in said["file"]
    assert said["rooms"] == [f"gr.{room}" for room in gr.ROOMS]
    assert [name for name in said["at once"] if name.startswith("gr")] == ["gr", "gr.errors"]
    assert not {"jax", "flax", "numpy"} & set(said["at once"])


def test_mains_and_configs_are_not_installed(installed_python):
    assert json.loads(installed_python("-c", ROOMS))["found"] == []


PAGE = """
from gr.reports.html import render_comparison
print(render_comparison(title="Two runs", notes=[], tables=[("Hits", [["run"], ["a"]])], figures={}))
"""


def test_a_page_is_made_of_the_installed_templates(installed_python):
    page = installed_python("-c", PAGE)
    assert "Two runs" in page and "<style" in page
