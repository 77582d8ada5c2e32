"""Turns the page's values into one HTML file that needs nothing else."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitedge.names import RUNTIME_NAMES
from vitedge.report.content import Page

_FOLDER = Path(__file__).parent


def render(page: Page) -> str:
    """The page as HTML; names of images, modules and devices are escaped."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    environment.globals |= {"names": RUNTIME_NAMES, "page": page}
    css = Markup((_FOLDER / "page.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    return environment.get_template("page.html.jinja").render(css=css)
