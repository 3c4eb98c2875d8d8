"""A document as one HTML page that opens from the disk: no network, no fonts, no other file.

All text is escaped by Jinja; data reach the script as JSON whose `<`, `>` and `&` are escaped. The
page's content security policy allows what is inside it and nothing else.
"""

import base64
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from eval.report.document import Document, Part, Picture
from eval.report.svg import DARK, LIGHT, RULES, palette

WORDS = {  # of verdicts: their looks
    "holds": "good", "superior": "good", "non-inferior": "good", "inferior": "bad",
}  # fmt: skip


def render(document: Document) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("eval.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": _kind, "data_url": _data_url, "look": _look}
    template = environment.get_template("report.html")
    style = (_file("report.css") + RULES).replace("/*LIGHT*/", palette(LIGHT))
    found: str = template.render(
        document=document,
        style=Markup(style.replace("/*DARK*/", palette(DARK))),
        script=Markup(_file("report.js")),
        markup=Markup,
    )
    return found


def _file(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _kind(part: Part) -> str:
    return type(part).__name__.lower()


def _look(word: str) -> str:
    return WORDS.get(word, "open")


def _data_url(picture: Picture) -> str:
    """Without loss as WebP, half the size; a file that Pillow cannot read is left as it is."""
    content, kind = picture.file.read_bytes(), "png"
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.save(packed := io.BytesIO(), "WEBP", lossless=True, exact=True)
        content, kind = packed.getvalue(), "webp"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
