"""The documentation site: Markdown pages, notebooks that are executed, and the reference from docstrings."""

from sparsemix import __version__

project = "sparsemix"
author = "The sparsemix authors"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["data", "api/modules.rst"]
html_theme = "furo"
html_title = f"sparsemix {version}"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # an error message in a block of its own is no language

nb_execution_mode = "auto"  # notebooks are kept without outputs
nb_execution_raise_on_error = True
nb_execution_timeout = 300

apidoc_modules = [
    {
        "path": "../sparsemix",
        "destination": "api",
        "exclude_patterns": ["**/__main__.py", "**/_utils/**", "**/cli/**"],
        "separate_modules": True,
        "module_first": True,
    }
]
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "ignore-module-all": True,
}  # each name at its home
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_ivar = True
