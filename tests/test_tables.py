"""Tables as Markdown, HTML and on the screen."""

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from padim_bottle.tables import Row, Table, figure

NAMES = ["crack [/b]", "scratch [old]", "[bold]x", "a|b", "<script>alert(1)</script>", 'q"&amp;', ":smile:", "ä \\ ["]


def on_screen(table, width=200):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.screen())
    return console.export_text()


class Cells(HTMLParser):
    """The text of each cell, row by row, and the tags that were met."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "p":
            self.rows.append([""])

    def handle_data(self, data):
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name):
    table = Table(["of", "value"], [Row([name, "1"])], notes=[f"note {name}"], title=f"title {name}")
    text = on_screen(table)
    assert f"  {name} " in text
    assert f"note {name}" in text
    assert f"title {name}" in text
    page = Cells(table.html())
    assert page.rows == [["of", "value"], [name, "1"], [f"note {name}"]]
    assert page.tags == {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    header, rule, row, _, note = table.markdown().splitlines()
    assert rule == "| --- | --- |"
    assert [line.replace("\\|", "").count("|") for line in (header, row)] == [3, 3]
    assert "<" not in row + note


def test_a_dash_stands_for_what_is_undefined_and_our_rows_are_bold():
    table = Table(["", "a", "b"], [Row(["ours", figure(0.5), figure(float("nan"))], own=True), Row(["x", None, "2"])])
    assert table.markdown().splitlines()[2:] == ["| **ours** | 0.5000 | - |", "| x | - | 2 |"]
    assert Cells(table.html()).rows[1:] == [["ours", "0.5000", "–"], ["x", "–", "2"]]
    assert 'class="own"><th scope="row">ours' in table.html()
    assert on_screen(table).splitlines()[3:5] == ["  ours   0.5000   -  ", "  x           -   2  "]


def test_a_row_may_link_to_its_page():
    html = Table(["", "a"], [Row(["x", "1"], link='a/"b".html')]).html()
    assert '<a href="a/&#34;b&#34;.html">x</a>' in html


def test_names_wrap_and_figures_do_not():
    text = on_screen(Table(["", "AUPRO to .3"], [Row(["a name " * 10, "0.123456789"])]), width=40)
    assert "0.123456789" in text
    assert max(map(len, text.splitlines())) <= 40


def test_no_rows_make_no_markdown():
    assert Table(["a"], []).markdown() == ""
