"""Sphinx's configuration; `make docs` builds from what build.py puts together."""

project = "setibl_ray"
author = copyright = "The setibl-ray authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # `make test-docs` executes them
myst_heading_anchors = 3
autodoc_typehints = "none"  # signatures have them; resolved they would name modules that nobody imports
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
html_theme = "furo"
html_title = "setibl_ray"
html_static_path, html_css_files = ["static"], ["site.css"]
html_copy_source = False
html_show_sphinx = False
