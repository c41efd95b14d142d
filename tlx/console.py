"""Where all that has colours, tables or bars is printed: a text is data there, whatever names stand in it."""

from __future__ import annotations

from typing import Any

from rich.console import Console as RichConsole
from rich.progress import TextColumn
from rich.text import Text

from tlx.errors import printable


class Console(RichConsole):
    """A console to which `[red]` and `:smile:` are no markup, and to which no text can send control characters.

    Line breaks are control characters too: a line is one call of `print`. Only `styled` gives a part of it a colour.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text that may be printed; each string that is printed, of tables too, comes through here."""
        return super().render_str(printable(text), **options)


def styled(text: str, style: str) -> Text:
    """Return a text in a style, such as ``bold`` or ``red``, for `Console.print` or the cell of a table."""
    return Text(printable(text), style=style)


def bar_text(field: str) -> TextColumn:
    """Return the column of a live bar that shows a field of its task, such as ``description``; it is `printable`."""
    return TextColumn(f"{{task.{field}}}", markup=False)
