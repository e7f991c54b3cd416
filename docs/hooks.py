"""What the site has beside docs/*.md: files of the repository that pages link to, notebooks, and the API's pages.

mkdocs calls the functions ``on_...``, mkdocstrings the class. Links of a page are those that work in the repository.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from pathlib import Path
from textwrap import indent
from typing import Any

from griffe import Extension, Module, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s:]+)([^)\s]*\))")
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?\.?([\w.]+)`")
TABLE = re.compile(r"^=+ [= ]+\n(?:.+\n)*", re.M)
PARTS = "covariance", "data", "evaluation", "levels", "likelihood", "networks", "ops", "sampling"


def in_repository(uri: str) -> str:
    """Path in the repository of a file of the site: what is not in docs/ has its own path."""
    return uri if (ROOT / uri).exists() and not (ROOT / "docs" / uri).exists() else f"docs/{uri}"


def in_site(path: str) -> str:
    return path.removeprefix("docs/")


def linked(path: str, text: str) -> list[str]:
    """Paths in the repository of the files that a page's links lead to."""
    found = (posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1])) for link in LINK.findall(text))
    return [name for name in found if (ROOT / name).is_file()]


def cells(notebook: Path) -> str:
    """A notebook as Markdown."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    name = notebook.name
    return "\n\n".join([*parts, f"The notebook itself: [{name}]({name})."]) + "\n"


def reference(name: str) -> str:
    """The page of a package. A function of its file's name is a module to mkdocstrings, so it is asked for apart."""
    folder = ROOT / name.replace(".", "/")
    parts, options = [f"# `{name}`", f"::: {name}"], "options: {show_root_heading: true, show_root_toc_entry: true}"
    for file in sorted(folder.glob("*.py")):
        part = file.stem
        if f"\ndef {part}(" in file.read_text() and f'"{part}"' in (folder / "__init__.py").read_text():
            parts.append(f"::: {name}.{part}.{part}\n    {options}")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in ("ansn", *(f"ansn.{part}" for part in PARTS)):
        files.append(File.generated(config, f"api/{name}.md", content=reference(name)))
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=cells(notebook)))
    waiting = ["README.md", *(in_repository(file.src_uri) for file in files.documentation_pages())]
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith(("docs/api/", "docs/notebooks/")):
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
        if path.endswith(".md"):
            waiting += linked(path, (ROOT / path).read_text())
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between files of the repository become links between files of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(in_repository(uri))

    def moved(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        return match[1] + os.path.relpath(in_site(path), posixpath.dirname(uri) or ".") + match[3]

    return LINK.sub(moved, markdown)


class Plain(Extension):
    """Docstrings as Markdown. Sphinx's roles: a link where the site has the name, else code. Its tables: as typed."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        self.walk(pkg)

    def walk(self, obj: Object) -> None:
        if obj.docstring:
            text = ROLE.sub(lambda match: self.link(obj, match[1]), obj.docstring.value)
            text = re.sub(r"::$", ":", text, flags=re.M)
            obj.docstring.value = TABLE.sub(lambda match: indent(match[0], "    "), text)
        for member in obj.members.values():
            if isinstance(member, Object):
                self.walk(member)

    @staticmethod
    def link(obj: Object, name: str) -> str:
        try:
            path = obj.resolve(name)
        except Exception:  # a name of another package, say
            path = name
        return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
