"""Tables and pictures for notebooks: what `_repr_html_` of emu86's objects returns."""

from collections.abc import Iterable


def table(title: str, rows: Iterable[tuple[object, ...]]) -> str:
    """Return HTML: a title and rows of cells, the first of each its heading."""
    from html import escape  # noqa: PLC0415 (few are in a notebook)

    lines = [f"<table><caption>{escape(title)}</caption>"]
    for head, *cells in rows:
        shown = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        lines.append(f"<tr><th>{escape(str(head))}</th>{shown}</tr>")
    return "\n".join([*lines, "</table>"])


def svg(width: int, height: int, parts: Iterable[str]) -> str:
    """Return a picture of parts, in pixels."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="monospace" font-size="12">\n' + "\n".join(parts) + "\n</svg>\n"
    )
