"""A document of a few kinds of blocks, written as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A heading; `level` 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font; folded away in HTML under `summary` where that is given."""

    text: str
    summary: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; the columns named in `numeric` are set flush right."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    numeric: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG file, in the document's folder or below it."""

    path: Path
    caption: str


Block = Heading | Paragraph | Code | Grid | Picture

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto;
       padding: 0 1.25rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; font-weight: normal; }
th { opacity: .7; } .number { text-align: right; white-space: nowrap; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
figure { margin: 1.2rem 0; } figcaption { opacity: .75; font-size: .9rem; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
summary { cursor: pointer; }
"""


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Return the document as Markdown, with pictures relative to `folder`."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Return the document as a page that needs no other file and no network."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape(text)}"
        case Paragraph(text):
            return _escape(text)
        case Code(text, summary):
            fence = "````" if "```" in text else "```"
            code = f"{fence}\n{text.rstrip()}\n{fence}"
            return f"{_escape(summary)}:\n\n{code}" if summary else code
        case Grid(columns, rows, numeric):
            marks = ["---:" if column in numeric else "---" for column in columns]
            lines = [columns, marks, *rows]
            return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)
        case Picture(path, caption):
            return f"![{_escape(caption)}]({path.relative_to(folder).as_posix()})"


def _escape(text: str) -> str:
    # Underscores and brackets stay: within words and without "(" after them they mean nothing.
    for sign in ("\\", "<", "*", "`", "]("):
        text = text.replace(sign, "\\" + sign)
    return text


def _cell(text: str) -> str:
    if set(text) <= {"-", ":"}:
        return text
    return _escape(text).replace("|", "\\|").replace("\n", " ")


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Code(text, summary):
            code = f"<pre>{html.escape(text.rstrip())}</pre>"
            if not summary:
                return code
            return f"<details><summary>{html.escape(summary)}</summary>{code}</details>"
        case Grid(columns, rows, numeric):
            return _html_table(columns, rows, numeric)
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            text = html.escape(caption)
            return (
                f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
                f"<figcaption>{text}</figcaption></figure>"
            )


def _html_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str]
) -> str:
    marks = [' class="number"' if column in numeric else "" for column in columns]

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (
            f"<{tag}{mark}>{html.escape(cell)}</{tag}>"
            for mark, cell in zip(marks, cells, strict=True)
        )
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    head = line(columns, "th")
    return (
        f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>{body}</tbody>\n</table></div>'
    )
