"""Sphinx settings of the documentation; `make docs` builds it into build/docs."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "jaxlm"
author = "the jaxlm authors"
copyright = author
extensions = ["myst_parser", "expand"]
exclude_patterns = ["_ext"]
html_theme = "sphinx_book_theme"
html_title = "jaxlm"
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Signatures with one parameter a line where they are long.
python_maximum_signature_line_length = 80
# Types are written in full, to be links, and shown by their last part.
python_use_unqualified_type_names = True
toc_object_entries = False
# Blocks of the pages that are neither Python nor shell are figures.
highlight_language = "none"
pygments_style = "friendly"
