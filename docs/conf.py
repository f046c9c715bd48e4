"""Sphinx: how the pages become a site, offline. `make docs` stages the pages first (docs/site/stage.py)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deploykit.version import __version__  # noqa: E402  (the path above has to be there)
from docs.site.llms import write_llms  # noqa: E402
from docs.site.search import SearchEnglishAndChinese  # noqa: E402

project = "deploykit"
author = "The deploykit developers"
copyright = "the deploykit developers, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
source_suffix = {".md": "markdown"}
smartquotes = False  # --option stays as it is typed

myst_heading_anchors = 4  # GitHub's anchors, so that page.md#section is checked
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"deploykit {__version__}"
html_copy_source = False
html_show_sourcelink = False
FONTS = (
    "-apple-system, BlinkMacSystemFont, Segoe UI, Helvetica, Arial, PingFang SC, Microsoft YaHei, Noto Sans CJK SC, "
    "sans-serif, Apple Color Emoji, Segoe UI Emoji"
)  # furo's, with those that have Chinese
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"font-stack": FONTS},
    "dark_css_variables": {"font-stack": FONTS},
}
copybutton_exclude = ".linenos, .gp, .go, .c1"  # comments of a line are not pasted
linkcheck_timeout = 15
linkcheck_workers = 4


ARRAY = re.compile(r"~?numpy\.ndarray\[tuple\[~?typing\.Any, \.\.\.\], ~?numpy\.dtype\[~?typing\.Any\]\]")


def with_short_arrays(*event: Any) -> tuple[str, str | None] | None:
    """A signature in which the type of an array is the name that the sources give it."""
    signature, returns = event[-2:]
    return (ARRAY.sub("Array", signature), returns) if signature else None


def with_language(_app: Any, page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Say that pages under zh/ are Chinese, so that the browser takes the right glyphs, line breaks and voice."""
    if page.startswith("zh/"):
        context["language"] = "zh-CN"


def setup(app: Any) -> None:
    """Write llms.txt and llms-full.txt when the site is built; shorten signatures; Chinese pages and their search."""
    app.connect("build-finished", write_llms)
    app.connect("autodoc-process-signature", with_short_arrays)
    app.connect("html-page-context", with_language)
    app.add_search_language(SearchEnglishAndChinese)
