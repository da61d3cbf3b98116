"""Tables for people: header, rows and notes, laid out as Markdown, as HTML or for the screen.

Names of files and folders come from outside: every layout shows them as they are, and none takes them for markup.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import rich.table
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from rich import box
from rich.text import Text

DASH = "-"
"""Stands for what is undefined in Markdown and on the screen; a page has the longer one."""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        cells: text, or ``None`` for what is undefined.
        own: shown in bold: ours among others, or a mean below its parts.
        link: address behind the first cell, on a page.
    """

    cells: Sequence[str | None]
    own: bool = False
    link: str | None = None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: of the columns.
        rows: each as long as the header.
        notes: sentences below it.
        title: above it on the screen, its name for a screen reader on a page.
        texts: how many columns, from the left, hold text: the others are aligned to the right where that is possible.
    """

    header: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    title: str = ""
    texts: int = 1

    def markdown(self) -> str:
        """Return the table and its notes as Markdown; nothing without rows."""
        if not self.rows:
            return ""
        lines = [
            _markdown_line(self.header),
            f"|{' --- |' * len(self.header)}",
            *(_markdown_line(row.cells, row.own) for row in self.rows),
        ]
        return "\n\n".join(["\n".join(lines), *map(escape_markdown, self.notes)])

    def html(self) -> Markup:
        """Return the table and its notes as HTML, in a region that scrolls."""
        head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in self.header)
        body = Markup("\n").join(map(_html_row, self.rows))
        notes = Markup("").join(Markup('<p class="quiet">{}</p>\n').format(note) for note in self.notes)
        return Markup(
            '<div class="scroll" tabindex="0" role="region" aria-label="{}">\n<table>\n<thead><tr>{}</tr></thead>\n'
            "<tbody>\n{}\n</tbody>\n</table>\n</div>\n{}"
        ).format(self.title, head, body, notes)

    def screen(self) -> rich.table.Table:
        """Return the table for Rich; columns of text may be wrapped, figures are not."""
        table = rich.table.Table(
            box=box.SIMPLE,
            title=Text(self.title) if self.title else None,
            caption=Text("\n".join(self.notes)) if self.notes else None,
        )
        for number, name in enumerate(self.header):
            if number < self.texts:
                table.add_column(Text(name), overflow="fold")
            else:
                table.add_column(Text(name.replace(" ", "\n")), justify="right", no_wrap=True)
        for row in self.rows:
            cells = (Text(DASH if cell is None else cell) for cell in row.cells)
            table.add_row(*cells, style="bold" if row.own else None)
        return table


def template_of(package: str, name: str) -> Template:
    """Return a template of a package, ``<package>/templates/<name>``; one of HTML escapes what it shows."""
    loader, escapes = PackageLoader(package), ".html" in name
    environment = Environment(loader=loader, autoescape=escapes, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(name)


def figure(value: float | None, spell: Callable[[float], str] = "{:.4f}".format) -> str | None:
    """Return a figure as the text of a cell, ``None`` where it is undefined."""
    # NaN, of all numbers, does not equal itself.
    return None if value is None or value != value else spell(value)


def mean_and_spread(mean: float | None, std: float | None) -> str | None:
    """Return a mean and its standard deviation as the text of a cell; the second is left out where it is undefined."""
    parts = filter(None, (figure(mean), figure(std)))
    return None if figure(mean) is None else " ± ".join(parts)


def escape_markdown(text: str) -> str:
    """Keep a name from breaking a table or becoming markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _markdown_line(cells: Sequence[str | None], own: bool = False) -> str:
    first, *others = (DASH if cell is None else escape_markdown(cell) for cell in cells)
    return f"| {' | '.join([f'**{first}**' if own else first, *others])} |"


def _html_row(row: Row) -> Markup:
    first, *others = ("–" if cell is None else cell for cell in row.cells)
    name = Markup('<a href="{}">{}</a>').format(row.link, first) if row.link else first
    return Markup('<tr{}><th scope="row">{}</th>{}</tr>').format(
        Markup(' class="own"') if row.own else "",
        name,
        Markup("").join(Markup("<td>{}</td>").format(cell) for cell in others),
    )
