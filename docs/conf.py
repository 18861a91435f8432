"""How Sphinx makes the documentation site: `make docs`.

The source is the whole repository. So pages outside of docs/ are read where they lie, and links are
the same on the site and where the files are browsed.
"""

from spectramind_fused.version import __version__

project = "spectramind_fused"
author = "the authors of spectramind_fused"
release = version = __version__

root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "configs/README.md",
    "configs/optimizer/README.md",
    "examples/README.md",
    "tests/README.md",
    "tests/emulator/README.md",
]
exclude_patterns = ["docs/README.md"]  # the same list as the index, for those who browse the files

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may begin with a smaller heading
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # links of docstrings stay inside: no network

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = f"spectramind_fused {release}"
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]
html_static_path = ["static"]
html_css_files = ["site.css"]
default_role = "code"  # single backticks of docstrings
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True
