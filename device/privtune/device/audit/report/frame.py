"""Pages from templates: no script, no outside resource, readable in light and dark. Every value is escaped."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_CODE = re.compile("`([^`]+)`")
_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'


def render_page(template: str, *, name: str, headline: str, **values: Any) -> str:
    """One HTML file. name: what made it. All values are escaped, unless they are `Markup`."""
    return _templates().get_template(template).render(name=name, headline=headline, **values) + "\n"


def depth(cut: int, tail: int, skip: str | None) -> str:
    """Which blocks are on the device, in words."""
    return f"cut {cut}, tail {tail} (skip {skip})" if tail else f"cut {cut}"


def inline(picture: str) -> Markup:
    """An SVG picture for a page. Inside HTML it needs no namespace, so that the page holds no address at all."""
    return Markup(picture.replace(_NAMESPACE, ""))


def prose(text: str) -> Markup:
    """Escaped, with text in backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("privtune.device.audit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"prose": prose, "percent": _percent, "attack": _attack, "frame": _frame}
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _attack(row: dict[str, Any]) -> str:
    return f"{row['name']} {row['variant']}, {row['knowledge']}"


def _frame(kind: str) -> str:
    """`up FORWARD` in words."""
    direction, _, name = kind.partition(" ")
    return f"{'sent' if direction == 'up' else 'came back'}: {name.lower().replace('_', ' ')}"
