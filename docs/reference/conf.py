"""Configuration of Sphinx; ``material_pages`` writes the pages for Material for MkDocs."""

import re
import sys
from inspect import isroutine
from pathlib import Path
from typing import Any

from sphinx.domains.python._object import PyObject
from sphinx.util.nodes import make_refnode

_FOLDER = Path(__file__).parent
# The paths of material_pages, of mathml, and of the package in this checkout.
sys.path[:0] = [str(_FOLDER), str(_FOLDER.parent), str(_FOLDER.parents[1])]

project = "robustfusion"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "mathml",
    "material_pages",
]
root_doc = "reference/index"
html_math_renderer = "mathml"
html_link_suffix = ".html"  # MkDocs turns every page into an HTML file
html_permalinks = False
html_copy_source = False

nitpicky = True
# Every name of this package must resolve; names of other libraries are not in the inventory.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|numpy|collections|pathlib|os|sklearn|transformers|huggingface_hub|PIL|matplotlib)\..*|robustfusion\.disruption\.plan\.Draws|robustfusion\.baselines\.head\.Output|robustfusion\._modules\..*|robustfusion\._trust_fit\..*|(Path|ndarray|Setting|Rate|Image\.Image|type|ValueError|int|str|bool|float|dict|list|tuple|None|Any|Tensor)",
    )
]
default_role = "code"
highlight_language = "python"

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
autodoc_default_options = {
    "exclude-members": "extra_repr",
    "inherited-members": "Module",
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
napoleon_custom_sections = ["Shape", "Reference"]
napoleon_use_ivar = True
napoleon_use_rtype = False
smartquotes_action = "D"  # only dashes: quotes stay unchanged

nitpick_ignore = [("py:class", "robustfusion._task_head.Supervision")]


def _open_with_a_comment(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from reading "The labels: one a row" of a property as a type and a text."""
    if what in ("property", "attribute"):
        lines[:0] = ["..", ""]  # an empty comment


def _skip_foreign(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out methods of other libraries, and the aliases of named tuples."""
    function = getattr(obj, "fget", None) or obj
    module = getattr(function, "__module__", None) or ""
    foreign = isroutine(function) and not module.startswith("robustfusion")
    alias = (getattr(obj, "__doc__", None) or "").startswith("Alias for field number")
    return True if foreign or alias else None


def _shorten_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str | None, Any]:
    """Shorten array types, and leave out ``*args`` and ``**kwargs`` of ``nn.Module``."""
    if signature is None:
        return None
    signature = re.sub(
        r"~numpy\.ndarray\[tuple\[.*?\], ~numpy\.dtype\[.*?\]\]", "ndarray", signature
    )
    return re.sub(r"\*args: (~typing\.)?Any, \*\*kwargs: (~typing\.)?Any", "", signature), returns


def _find_anywhere(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve a short name if it is unique, for example that of a function on the same page."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    matches = domain.find_obj(env, None, None, node["reftarget"], node["reftype"], searchmode=1)
    targets = {(entry.docname, entry.node_id) for _, entry in matches}
    if len(targets) != 1:
        return None
    document, anchor = targets.pop()
    return make_refnode(app.builder, node["refdoc"], document, anchor, contnode)


def setup(app: Any) -> None:
    """Register the functions above; the first must run before napoleon."""
    app.connect("autodoc-process-docstring", _open_with_a_comment, priority=400)
    app.connect("autodoc-skip-member", _skip_foreign)
    app.connect("autodoc-process-signature", _shorten_signature)
    app.connect("missing-reference", _find_anywhere)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
