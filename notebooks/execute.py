"""Runs notebooks and stores them with what they print and draw.

    python notebooks/execute.py [NAME.ipynb ...] [--repository=https://github.com/OWNER/gr]

Without names all are run. `--repository` sets the repository's address first: in the notebooks, in README.md and in
docs/notebooks.md, whose "Open in Colab" links are made of it.
"""

import argparse
import base64
import io
import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PAGES = (ROOT / "README.md", ROOT / "docs/notebooks.md")
LARGEST = 400_000  # Bytes of a notebook.


def address() -> str:
    """The repository's address, as all notebooks name it.

    Raises:
        ValueError: if two name different ones.
    """
    named = re.compile(r'REPOSITORY = \\"(https://[^"\\]+)\\"')
    found = {name for path in NOTEBOOKS for name in named.findall(path.read_text())}
    if len(found) != 1:
        raise ValueError(f"the notebooks name {sorted(found)}: make it one address")
    return found.pop()


def in_colab(repository: str) -> str:
    """The beginning of the links by which Colab opens what is in a repository on GitHub."""
    return repository.replace("https://github.com/", "https://colab.research.google.com/github/")


def set_address(new: str) -> None:
    """Writes another address wherever the present one stands."""
    old = address()
    for path in (*NOTEBOOKS, *PAGES):
        text = path.read_text().replace(old, new).replace(in_colab(old), in_colab(new))
        path.write_text(text)


def cleaned(notebook: nbformat.NotebookNode, *folders: Path) -> nbformat.NotebookNode:
    """The notebook without what only concerns this run: warnings, progress bars, times of cells, names of folders."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            if output.get("name") == "stdout":
                for folder in folders:
                    output.text = output.text.replace(f"{folder}/", "")
                if kept and kept[-1].get("name") == "stdout":  # It came in pieces.
                    kept[-1].text += output.text
                    continue
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = in_few_colours(output.data["image/png"])
            if output.get("name") != "stderr":
                kept.append(output)
        cell.outputs = kept
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def in_few_colours(png: str) -> str:
    """A picture in base64 with 64 colours, which makes it much smaller."""
    image, buffer = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    image.convert("RGB").quantize(64).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def execute(path: Path) -> None:
    """Runs a notebook in an empty folder, on the code of this repository, and stores it.

    Raises:
        ValueError: if it becomes too large.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        # A cell that fails raises here, with its traceback.
        NotebookClient(notebook, timeout=900, resources=resources).execute()
        nbformat.write(cleaned(notebook, Path(folder), ROOT), path)
    size = path.stat().st_size
    print(f"{path.name}: {size:,} bytes")
    if size > LARGEST:
        raise ValueError(f"{path.name} has {size:,} bytes: draw less, {LARGEST:,} are enough")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks to run; none: all")
    parser.add_argument("--repository", help="the repository's address")
    arguments = parser.parse_args()
    if arguments.repository:
        set_address(arguments.repository)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for path in [FOLDER / name for name in arguments.names] or NOTEBOOKS:
        execute(path)
