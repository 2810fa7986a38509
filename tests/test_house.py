"""What holds for the whole project rather than for one room."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gr

ROOT = Path(__file__).resolve().parents[1]

# Data moves down this list and never back up.
ROOMS = gr.ROOMS

# What is imported, where it is called otherwise in setup.py.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "markupsafe": "jinja2",  # Which returns and takes its `Markup`.
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "sentence_transformers": "sentence-transformers",
}
# In extras, so never imported by merely importing `gr`.
OPTIONAL = {"safetensors", "sentence-transformers", "tokenizers"}

MODULES = sorted((ROOT / "gr").rglob("*.py"))
MAINS = sorted((ROOT / "experiments").rglob("*.py"))


def imports(path):
    """Dotted names of the modules that a file imports, anywhere in it, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from gr import data` imports the room `gr.data`.
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_the_rooms_are_those_of_the_list():
    folders = {path.parent.name for path in (ROOT / "gr").glob("*/__init__.py")}
    assert folders == set(ROOMS)


def test_test_files_have_names_of_their_own():
    """Two of one name cannot be collected together."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room):
    allowed = ROOMS[: ROOMS.index(room) + 1]
    wrong = []
    for path in sorted((ROOT / "gr" / room).rglob("*.py")):
        for name, line in imports(path):
            parts = name.split(".")
            if parts[0] == "gr" and parts[1] not in (*allowed, "errors", "fields"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_library_knows_neither_mains_nor_flags_nor_configs():
    forbidden = {"absl", "configs", "experiments", "ml_collections", "tests"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        for name, line in imports(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in (*MODULES, *MAINS)
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


@pytest.mark.parametrize("room", ROOMS)
def test_the_public_names_of_a_room_exist(room):
    module = importlib.import_module(f"gr.{room}")
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for name in module.__all__:
        assert hasattr(module, name), f"gr.{room}.__all__ names {name}, which it lacks"


IMPORT_EACH = """
import importlib, json, sys
rooms, loaded = json.loads(sys.argv[1]), {}
for room in rooms:
    # As in a fresh process, without importing jax anew: no room may count on another having been imported.
    for name in [name for name in sys.modules if name.split(".")[0] == "gr"]:
        del sys.modules[name]
    importlib.import_module("gr." + room if room else "gr")
print(json.dumps(sorted(name.split(".")[0] for name in sys.modules)))
"""


def test_each_room_can_be_imported_alone_and_without_heavy_packages():
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, json.dumps(["", *reversed(ROOMS)])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 0, process.stderr
    heavy = {"grain", "matplotlib", "pandas", "sentence_transformers", "sklearn", "torch"}
    heavy |= {"hypothesis", "pytest", "safetensors", "tokenizers", "transformers"}
    assert not heavy & set(json.loads(process.stdout))


def tracked_files():
    """Paths of all files in git; skips the test where there is no git checkout."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a git checkout: {error}")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def paths_of_this_machine():
    """A pattern for home folders of anyone, and for this checkout, its neighbours and this Python."""
    here = [ROOT]
    if ROOT.parent not in (Path("/"), Path("/tmp")):
        here += ROOT.parent.iterdir()
    if sys.prefix != sys.base_prefix:
        here.append(Path(sys.prefix))
    patterns = [r"/(?:home|Users|root)/\w", *(re.escape(str(path)) + r"\b" for path in here)]
    return re.compile(r"(?<![\w.}])(?:" + "|".join(patterns) + ")")


def test_no_path_of_a_machine_is_written_down():
    machine = paths_of_this_machine()
    assert machine.search(f"GR_DATA={ROOT}/data") and machine.search('"/home/ann/data"')
    assert not machine.search("https://example.org/home/index.html")
    wrong = []
    for path in tracked_files():
        if path == Path(__file__).resolve():
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if machine.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def requirements():
    """Names in `install_requires` and in all extras of setup.py, normalised."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    ]
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}

    def names(node):
        texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
        return {normalised(re.match(r"[\w.-]+", text).group()) for text in texts}

    return names(arguments["install_requires"]), names(arguments["extras_require"])


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def third_party_imports(paths):
    """Distribution name -> the places that import it."""
    found = {}
    for path in paths:
        for name, line in imports(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in ("gr", "experiments", "configs"):
                continue
            distribution = normalised(DISTRIBUTIONS.get(top, top))
            found.setdefault(distribution, []).append(f"{path.relative_to(ROOT)}:{line}")
    return found


def test_everything_imported_is_installed_with_the_package():
    required, extras = requirements()
    found = third_party_imports((*MODULES, *MAINS, *sorted((ROOT / "configs").glob("*.py"))))
    missing = {name: places for name, places in found.items() if name not in required | OPTIONAL}
    assert not missing, f"add to install_requires in setup.py: {missing}"
    assert OPTIONAL <= extras
