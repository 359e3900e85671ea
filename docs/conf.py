"""Settings of Sphinx for `make docs`. Pages are plain Markdown that GitHub shows too; this file makes them a site."""

import os
import re
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "extensions")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository", "https://github.com/video-mamba-zoo/video-mamba-zoo").rstrip("/")

project = "Video Mamba Zoo"
author = "the authors of Video Mamba Zoo"
project_copyright = author
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "public_names",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "notebooks/*.ipynb"]

# Pages --------------------------------------------------------------------------------------------------------------

myst_heading_anchors = 4  # as GitHub makes them
myst_enable_extensions = ["colon_fence"]
# Blocks of code without a language are commands, listings of files and drawings. `text` colours nothing.
highlight_language = "text"

# Notebooks: executed when the site is built. `DOCS_EXECUTE=off` shows them without their results, for work on the text.
nb_execution_mode = os.environ.get("DOCS_EXECUTE", "force")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_execution_in_temp = True
# What the commands of a notebook print is shown as a log file has it, not as a terminal: see rich and tqdm.
os.environ |= {"TTY_COMPATIBLE": "0", "PYTHONWARNINGS": "ignore:IProgress not found"}
# Nothing on the pages needs widgets, whose scripts would come from another host.
nb_ipywidgets_js: dict = {}

# API ----------------------------------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
default_role = "literal"  # docstrings write `code` in single backticks

# Look ---------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "Video Mamba Zoo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("models.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
templates_path: list[str] = []

_LINK = re.compile(r"(\]\(\s*)(?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?(\s*\))")


def _site_links(text: str, folder: Path) -> str:
    """Links of a Markdown file in `folder`, as they are on the site: to pages and pictures below docs/ relative to it,
    to other files of the repository at GitHub. Blocks of code are left alone."""

    def replace(found: re.Match) -> str:
        target = (folder / found[2]).resolve()
        anchor = found[3] or ""
        page = INCLUDED.get(target)
        if page:
            there = page
        elif target.is_relative_to(DOCS):
            there = os.path.relpath(target, DOCS if folder == ROOT else folder)
        else:
            kind = "tree" if target.is_dir() else "blob"
            there = f"{REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}"
        return f"{found[1]}{there}{anchor}{found[4]}"

    parts = re.split(r"(^ *```.*?^ *```\s*?$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else _LINK.sub(replace, part) for i, part in enumerate(parts))


# Files of the repository that are pages too: each has a page in docs/ that includes it.
INCLUDED = {ROOT / f"{name.upper()}.md": f"{name}.md" for name in ("contributing", "changelog", "security")}


def _on_page(app: Sphinx, docname: str, source: list[str]) -> None:
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".md":
        source[0] = _site_links(source[0], path.parent)


def _on_included(app: Sphinx, path: Path, docname: str, source: list[str]) -> None:
    source[0] = _site_links(source[0], (DOCS / path).resolve().parent)


def _commands_in_colour(app: Sphinx, tree: nodes.document) -> None:
    """Blocks without a language whose first line is a command are shell."""
    programs = (
        r"(zoo|lightning|pip|python|make|torchrun|export|git|srun|TRITON_INTERPRET=|PYTHONPATH=|benchmarks/|#!/bin)"
    )
    for block in tree.findall(nodes.literal_block):
        if block.get("language") == "text" and re.match(programs, block.astext()):
            block["language"] = "bash"


def _defaults_that_parse(app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, result: str):
    """The default of a dataclass's field that is made anew, `<factory>`, is no Python."""
    return signature and signature.replace("<factory>", "..."), result


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", _defaults_that_parse)
    app.connect("source-read", _on_page)
    app.connect("include-read", _on_included)
    app.connect("doctree-read", _commands_in_colour)
