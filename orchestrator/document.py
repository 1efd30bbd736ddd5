"""A document of a few kinds of blocks, written as Markdown and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A heading; `level` 1 is the title, 2 begins a section of the page."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Notice:
    """What has to be read before any number: a paragraph that a page sets apart."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font; folded away in HTML under `summary` where that is given."""

    text: str
    summary: str = ""


Interval = tuple[float, float | None, float | None]
"""A mean with the ends of its interval, or None for these."""


@dataclass(frozen=True)
class Grid:
    """A table, sortable on a page; the columns named in `numeric` are set flush right.

    Attributes:
        columns: Heads.
        rows: Texts.
        numeric: Heads of columns of numbers.
        intervals: For each row a mean and its interval, or None, that a page draws on one scale
            beside the first column of numbers; empty draws nothing.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    numeric: tuple[str, ...] = ()
    intervals: Sequence[Interval | None] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG file, in the document's folder or below it; a page shows the SVG beside it if any."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Fact:
    """A number that stands out: what it is of, itself, and a few words on it."""

    title: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Facts:
    """Numbers that stand out, side by side."""

    facts: Sequence[Fact]


@dataclass(frozen=True)
class Card:
    """A picture with its title, facts, and a list that a page folds away.

    Attributes:
        picture: The picture; its caption is the title.
        facts: Short sentences.
        summary: What the list is of.
        items: The list.
    """

    picture: Picture
    facts: Sequence[str] = ()
    summary: str = ""
    items: Sequence[str] = ()


@dataclass(frozen=True)
class Gallery:
    """Cards side by side."""

    cards: Sequence[Card]


Block = Heading | Paragraph | Notice | Code | Grid | Picture | Facts | Gallery


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Return the document as Markdown, with pictures relative to `folder`."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str, *, live: bool = False) -> str:
    """Return the document as a page that needs no other file and no network.

    Args:
        blocks: Its blocks.
        title: Title of the window.
        live: Whether the page asks its server again and again whether it has changed.
    """
    from orchestrator.page import render  # here: it brings jinja2

    return render(blocks, title, live=live)


def prose(text: str) -> list[tuple[str, bool]]:
    """Return the parts of a text, and of each whether it stands between backticks: a command."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one of them has no other
        return [(text, False)]
    return [(part, place % 2 == 1) for place, part in enumerate(parts) if part]


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape(text)}"
        case Paragraph(text) | Notice(text):
            parts = [f"`{part}`" if code else _escape(part) for part, code in prose(text)]
            return "".join(parts)
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
        case Facts(facts):
            more = (f" ({fact.more})" if fact.more else "" for fact in facts)
            told = (
                f"{fact.title}: {fact.value}{add}" for fact, add in zip(facts, more, strict=True)
            )
            return "\n".join(f"- {_escape(line)}" for line in told)
        case Gallery(cards):
            return "\n\n".join(_markdown_card(card, folder) for card in cards)


def _markdown_card(card: Card, folder: Path) -> str:
    told = [*card.facts, *([f"{card.summary}: {', '.join(card.items)}."] if card.items else [])]
    return f"{_markdown(card.picture, folder)}\n\n{_escape(' '.join(told))}".rstrip()


def _escape(text: str) -> str:
    # Underscores and brackets stay: within words and without "(" after them they mean nothing.
    for sign in ("\\", "<", "*", "`", "]("):
        text = text.replace(sign, "\\" + sign)
    return text


def _cell(text: str) -> str:
    if set(text) <= {"-", ":"}:
        return text
    return _escape(text).replace("|", "\\|").replace("\n", " ")
