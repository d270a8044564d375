"""Hooks of mkdocs.yml: the site carries along what its pages link to outside of docs/.

Links are written for a reader of the repository (`../results/speed`). Markdown, notebooks and folders that they lead
to become pages of the site, all else is copied into it, and links are rewritten to where that lies. One link works in
the repository and on the site, which needs no network and no address of the repository.
"""

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]+)(?=[)#])")
IN_THE_NAV = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/quickstart.ipynb")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that are linked to, and what those link to."""
    waiting = [ROOT / name for name in IN_THE_NAV]
    waiting += [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        uri, text = place(path), markdown_of(path)
        if files.get_file_from_path(uri) is None:
            is_made = text is not None and path.suffix != ".md"
            files.append(File.generated(config, uri, **({"content": text} if is_made else {"abs_src_path": str(path)})))
        waiting += [target for link in LINK.findall(text or "") if (target := reach(path, link)).exists()]
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


class Sections(Extension):
    """griffe takes a section of a docstring below an empty line alone, and one argument a line; ours are shorter."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"\n(Args|Attributes|Returns|Raises):\n", r"\n\n\1:\n", obj.docstring.value)
            obj.docstring.value = re.sub(r"^    ((?:\w+, )+)(\w+): ", one_by_one, text, flags=re.MULTILINE)


def one_by_one(listed: re.Match[str]) -> str:
    """The lines of several arguments that are described together."""
    return "".join(f"    {name}: see {listed[2]}.\n" for name in listed[1].split(", ")[:-1]) + f"    {listed[2]}: "


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links of a page, to where the site has what they lead to."""
    uri = page.file.src_uri
    path = next((ROOT / name for name in IN_THE_NAV if place(ROOT / name) == uri), None)
    path = path or (ROOT / "docs" / uri if (ROOT / "docs" / uri).exists() else ROOT / uri)

    def rewritten(link: re.Match[str]) -> str:
        target = reach(path, link[0])
        return os.path.relpath(place(target), os.path.dirname(uri) or ".") if target.exists() else link[0]

    return LINK.sub(rewritten, markdown)


def reach(page: Path, link: str) -> Path:
    """The file or folder of the repository that a link of this page leads to."""
    target = Path(os.path.normpath((page if page.is_dir() else page.parent) / link))
    return target / "README.md" if (target / "README.md").exists() else target


def place(path: Path) -> str:
    """Where the site has a file or folder of the repository: docs/ is its root, README.md its first page."""
    uri = path.relative_to(ROOT).as_posix()
    if uri == "README.md":
        return "index.md"
    if path.is_dir():
        return f"{uri}/README.md"
    return uri.removeprefix("docs/").replace(".ipynb", ".md")


def markdown_of(path: Path) -> str | None:
    """The text of a page: of Markdown itself, of a notebook its cells, of a folder its files; None for other files."""
    if path.is_dir():
        names = sorted(f"{item.name}/" if item.is_dir() else item.name for item in path.iterdir())
        return f"# {path.relative_to(ROOT)}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
    if path.suffix == ".ipynb":
        return "\n\n".join(map(cell_text, json.loads(path.read_text(encoding="utf-8"))["cells"]))
    return path.read_text(encoding="utf-8") if path.suffix == ".md" else None


def cell_text(cell: dict[str, Any]) -> str:
    """A cell as Markdown: text as it is, code with what it printed and drew."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            parts.append(f'<img alt="what the cell draws" src="data:image/png;base64,{data["image/png"].strip()}">')
        elif text := "".join(output.get("text", data.get("text/plain", []))):
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def commands() -> str:
    """The page of all commands: what --help prints of each."""
    from ecoformer.cli.main import COMMANDS, main

    parts = [
        "# Commands",
        "What `ecoformer COMMAND --help` prints; the files of `scripts/` are the same commands, from a checkout.",
    ]
    with mock.patch.dict(os.environ, COLUMNS="100"), mock.patch("sys.argv", ["ecoformer"]):
        for name, (_, about) in COMMANDS.items():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                main([name, "--help"])
            help_text = f"```text\n{printed.getvalue().strip()}\n```"
            parts += [f"## ecoformer {name}", f"{about[0].upper()}{about[1:]}.", help_text]
    return "\n\n".join(parts)
