"""The site that ``make docs`` builds: these pages, the docstrings of the public face, and every key of the schema."""

import sys
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rbc_warp import __version__  # noqa: E402
from rbc_warp.config.messages import allowed_text, model_in, show  # noqa: E402
from rbc_warp.config.schema import Config  # noqa: E402

project, author, release = "rbc_warp", "rbc_warp authors", __version__
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
add_module_names = False
html_theme, html_title = "furo", "rbc_warp"
html_show_sourcelink = html_copy_source = False


def keys(model: type, prefix: str) -> Iterator[str]:
    """Yield the Markdown of each key: its anchor, its meaning with unit, what is allowed, its default."""
    for name, field in model.model_fields.items():
        meaning, default = field.description, "must be given"
        if not field.is_required():
            meaning = meaning.removesuffix(f"; default {show(field.default)}")
            grid = isinstance(field.default, tuple)
            default = f"default {[f'{x:g}' for x in field.default] if grid else show(field.default)}".replace("'", "")
        yield f"```{{confval}} {prefix}.{name}\n{meaning}. *Allowed: {allowed_text(field)}; {default}.*\n```"
        block = model_in(field.annotation)
        if block:
            yield from keys(block, f"{prefix}.{name}")


class Keys(SphinxDirective):
    """``{config-keys} SECTION``: every key of a section of the configuration, from the schema."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        section = self.arguments[0]
        model = model_in(Config.model_fields[section].annotation)
        self.env.note_dependency(sys.modules[Config.__module__].__file__)
        return self.parse_text_to_nodes("\n".join(keys(model, section)))


def setup(app: Sphinx) -> None:
    app.add_directive("config-keys", Keys)
