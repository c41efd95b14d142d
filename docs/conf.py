"""The site that `make docs` builds: Markdown by MyST, docstrings by autodoc, the look by furo."""

from __future__ import annotations

import tlx

project = "tlx"
author = "The tlx developers"
release = version = tlx.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
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
autodoc_typehints = "none"  # the text says types and shapes; the signatures stay readable
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Every reference must lead somewhere. Names of the standard library and of NumPy have no page here, and the build uses
# no network, so these alone may be left open.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(collections|pathlib|typing|numpy|np|rich)\..*|Path|Any|Mapping|Sequence|Callable")]
