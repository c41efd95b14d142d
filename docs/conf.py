"""The site that `make docs` builds: Markdown by MyST, docstrings by autodoc, the look by furo."""

from __future__ import annotations

import tlx

project = "tlx"
author = "The tlx developers"
release = version = tlx.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "tlx"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["tlx.css"]
pygments_style = "friendly"

default_role = "code"  # a name in single backticks in a docstring
autodoc_typehints = "description"  # the signatures stay readable
autodoc_typehints_description_target = "documented"
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Every reference in a document must lead somewhere. Types in signatures may be open where they have no page here: those
# of the standard library and of NumPy, as the build uses no network, and those of tlx that are not public.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|pathlib|typing|numpy|np|rich)\..*"),
    ("py:.*", r"tlx\.(data|models|processes|proof|recipe_fields|recipe_schema)\..*"),
    ("py:.*", r"tlx\.(runs|strategy|training|backend\.protocol)\..*"),
    ("py:.*", r"[A-Z]\w*"),  # an alias
]
