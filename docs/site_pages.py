"""Pages of the site that are no files of docs/: those of the repository's root, and a reference page for each room."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import gr

ROOT = Path(__file__).parents[1]
OF_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
FIRST = ("notebooks", "architecture", "methods", "extending", "new_items", "trie", "losses", "rl")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists every page of docs/, those of `FIRST` first."""
    names = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    config.nav = [
        {"Overview": "index.md"},
        *[f"{name}.md" for name in names],
        {"Reference": [{f"gr.{room}": f"reference/{room}.md"} for room in gr.ROOMS]},
        {"Contributing": "contributing.md"},
        {"Changelog": "changelog.md"},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root and of the rooms."""
    for name, place in OF_ROOT.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text()))
    for room in gr.ROOMS:
        files.append(
            File.generated(
                config, f"reference/{room}.md", content=f"# gr.{room}\n\n::: gr.{room}\n"
            )
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links as they are in the repository into those of the site.

    A link to a file that is no page becomes the file's name.

    Raises:
        PluginError: for a link to a file that does not exist.
    """
    place = page.file.src_uri
    source = next((name for name, of in OF_ROOT.items() if of == place), f"docs/{place}")
    folder = (ROOT / source).parent

    def link(match: re.Match) -> str:
        text, target, anchor = match.groups()
        file = (folder / target).resolve()
        if not file.exists():
            raise PluginError(f"{source}: the link to {target} leads nowhere")
        name = file.relative_to(ROOT).as_posix()
        on_site = OF_ROOT.get(name) or name.removeprefix("docs/")
        if name in OF_ROOT or name.startswith("docs/"):
            return f"[{text}]({on_site}{anchor or ''})"
        return text if text.startswith("`") else f"{text} (`{name}`)"

    if place.startswith("reference/"):
        return markdown
    return re.sub(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", link, markdown)
