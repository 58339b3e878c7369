"""The site: `make docs` builds it. Pages are Markdown (MyST); the reference is made from the package at build time."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import twinblock  # noqa: E402

project, author, copyright = "twinblock", "the authors of twinblock", "the authors of twinblock, Apache-2.0"
version = release = twinblock.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "reference", "formulas"]
myst_enable_extensions = ["dollarmath", "attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "reference/_generated"]
html_math_renderer = "mathml"
html_theme, html_title, html_static_path = "furo", "twinblock", ["_static"]
html_css_files = ["wide.css"]
copybutton_exclude = ".linenos, .gp"
autodoc_member_order, autodoc_typehints = "bysource", "description"
autodoc_preserve_defaults = True
default_role = "literal"  # single backticks of docstrings are code
nitpick_ignore_regex = [("py:.*", r".*")]  # types of torch and numpy: their inventories need the network
