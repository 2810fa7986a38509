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


def test_the_ten_lines_of_the_readme_run_without_the_repository(installed_python, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = ["user_id,item_id,timestamp"]
    for user in range(60):
        lines += [f"u{user},i{(user + step) % 12},{1_700_000_000 + step}" for step in range(8)]
    (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
    said = installed_python("-c", f"import os; os.chdir({str(tmp_path)!r})\n{example}")
    listed = said.splitlines()[-4:]  # Items 0 to 7 were seen, four are left.
    assert sorted(line.split()[-1] for line in listed) == ["i10", "i11", "i8", "i9"]
    assert (tmp_path / "runs/clicks/report_test.html").stat().st_size > 10_000
