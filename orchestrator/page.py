"""The HTML page of a document: one file, no network, in the reader's own colours."""

from __future__ import annotations

import base64
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.document import Block, Grid, Heading, Interval, Picture, prose
from orchestrator.plots import COLOURS

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATES = Path(__file__).with_name("templates")
_LONG_TABLE = 25
"""Rows from which on a table has a field to filter it by."""

# What matplotlib draws in fixed colours, in those of the page.
_COLOURS = {
    "#000000": "currentColor", "#333333": "currentColor", "#1f2933": "currentColor",
    "#dddddd": "var(--grid)", "#e5e5e5": "var(--grid)", "#cccccc": "var(--grid)",
    "#aaaaaa": "var(--faint)", "#c3ccd5": "var(--faint)", "#999999": "var(--faint)",
    "#eef2f6": "var(--soft)", "#ffffff": "var(--paper)",
    **{colour.lower(): f"var(--colour-{place})" for place, colour in enumerate(COLOURS)},
}  # fmt: skip
_BAR_WIDTH, _BAR_HEIGHT, _BAR_MARGIN = 130.0, 18.0, 6.0


@dataclass
class Section:
    """A level-two heading and what follows it, up to the next.

    Attributes:
        title: The heading; empty for what comes first.
        name: Its anchor.
        blocks: The blocks below it.
    """

    title: str = ""
    name: str = ""
    blocks: list[Block] = field(default_factory=list)


def render(blocks: Sequence[Block], title: str, *, live: bool) -> str:
    """Return the page; see `orchestrator.document.to_html`."""
    head = next((b.text for b in blocks if isinstance(b, Heading) and b.level == 1), title)
    return _template().render(
        title=title,
        head=head,
        sections=sections(blocks),
        live=live,
        kind=lambda block: type(block).__name__,
        prose=prose,
        image=image,
        bars=bars,
        long_table=_LONG_TABLE,
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "page.js").read_text(encoding="utf-8"),
        live_script=(_TEMPLATES / "live.js").read_text(encoding="utf-8"),
    )


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html")


def sections(blocks: Sequence[Block]) -> list[Section]:
    """Return the blocks by section, the title left out; the first section has no heading."""
    found = [Section()]
    names: set[str] = set()
    for block in blocks:
        if isinstance(block, Heading) and block.level == 1:
            continue
        if isinstance(block, Heading) and block.level == 2:
            name = re.sub(r"[^a-z0-9]+", "-", block.text.lower()).strip("-") or "section"
            while name in names:
                name += "-"
            names.add(name)
            found.append(Section(block.text, name))
        else:
            found[-1].blocks.append(block)
    return found


def image(picture: Picture) -> Any:
    """Return the element that shows a picture: its SVG within the page, else its PNG as data."""
    from markupsafe import Markup

    drawing = picture.path.with_suffix(".svg")
    if drawing.is_file():
        svg = inline_svg(drawing.read_text(encoding="utf-8"), picture.path.stem)
        label = Markup('<svg role="img" aria-label="{}" ').format(picture.caption)
        return Markup(svg.replace("<svg ", str(label), 1))
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(picture.caption, data)


def inline_svg(text: str, name: str) -> str:
    """Return a drawing of matplotlib as an element of a page.

    Its colours of ink, paper and grid become the page's; names inside it get `name` in front, since
    a page has many drawings; coordinates keep a tenth of a point.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'(<svg\b[^>]*?)\s+width="([\d.]+)pt"', r'\1 style="max-width:\2pt"', text, count=1
    )
    text = re.sub(r'(<svg\b[^>]*?)\s+height="[\d.]+pt"', r"\1", text, count=1)
    prefix = re.sub(r"\W", "-", name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r' d="([^"]*)"', lambda found: f' d="{_rounded(found[1])}"', text)
    for fixed, variable in _COLOURS.items():
        text = text.replace(fixed, variable)
    return re.sub(r"\n\s*", "\n", text).strip()


def _rounded(path: str) -> str:
    return re.sub(r"(\.\d)\d+", r"\1", path).replace("\n", "")


def bars(grid: Grid) -> list[Any]:
    """Return a drawing for each row's mean and interval, all on one scale."""
    from markupsafe import Markup

    known = [each for each in grid.intervals if each is not None]
    ends = [value for each in known for value in each if value is not None]
    if not ends:
        return []
    low, high = min(ends), max(ends)
    if math.isclose(low, high):
        low, high = low - 0.5, high + 0.5
    return [Markup(_bar(each, low, high)) for each in grid.intervals]


def _bar(interval: Interval | None, low: float, high: float) -> str:
    if interval is None:
        return ""

    def at(value: float) -> str:
        room = _BAR_WIDTH - 2 * _BAR_MARGIN
        return f"{_BAR_MARGIN + room * (value - low) / (high - low):.1f}"

    mean, start, end = interval
    middle = _BAR_HEIGHT / 2
    line = f'<path class="axis" d="M{_BAR_MARGIN} {middle}H{_BAR_WIDTH - _BAR_MARGIN}"/>'
    said = f"{mean:.4g}"
    if start is not None and end is not None:
        line += f'<path class="interval" d="M{at(start)} {middle}H{at(end)}"/>'
        said += f" [{start:.4g}, {end:.4g}]"
    return (
        f'<svg class="bar" viewBox="0 0 {_BAR_WIDTH:.0f} {_BAR_HEIGHT:.0f}" role="img" '
        f'aria-label="{said}"><title>{said}</title>{line}'
        f'<circle cx="{at(mean)}" cy="{middle}" r="4"/></svg>'
    )
