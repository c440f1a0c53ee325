"""Plots of ratios, as SVG files that also suit a dark page."""

from html import escape
from math import floor, log
from statistics import median
from typing import Final

from bench.results import Result

# The same mark in every plot; one more is for others.
_KINDS: Final = {"patch": 0, "iopl": 1, "trap": 2, "bare": 3}
_FEW: Final = 5  # rows; below that the table says it all
_WIDTH: Final = 760
_LEFT: Final = 380
_RIGHT: Final = 40
_TOP: Final = 56
_ROW: Final = 22
_STYLE: Final = """\
    .paper { fill: #ffffff }
    .grid { stroke: #d5dae1 }
    .one { stroke: #444c58; stroke-width: 2 }
    .c0 { fill: #2f6fd0; stroke: #2f6fd0 }
    .c1 { fill: #c8741a; stroke: #c8741a }
    .c2 { fill: #2e8b57; stroke: #2e8b57 }
    .c3 { fill: #8a5fc0; stroke: #8a5fc0 }
    .c4 { fill: #b0413e; stroke: #b0413e }
    text { fill: #1d232b }
    .tick { text-anchor: middle }
    .big { font-size: 14px; font-weight: 600 }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #0d1117 }
      .grid { stroke: #30363d }
      .one { stroke: #b5bfcc }
      .c0 { fill: #5a96ef; stroke: #5a96ef }
      .c1 { fill: #e0933e; stroke: #e0933e }
      .c2 { fill: #4fb783; stroke: #4fb783 }
      .c3 { fill: #ab86dd; stroke: #ab86dd }
      .c4 { fill: #e07a76; stroke: #e07a76 }
      text { fill: #e6edf3 }
    }"""
_HEAD: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
width="{width}" height="{height}" role="img" aria-labelledby="title" \
font-family="system-ui, 'DejaVu Sans', sans-serif" font-size="12">
  <title id="title">{title}</title>
  <style>
{style}
  </style>
  <rect class="paper" width="{width}" height="{height}" rx="8"/>
  <text class="big" x="16" y="26">{title}</text>"""
# Marks around 0,0: told apart without colours, too.
_MARKS: Final = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.5 -4.5h9v9h-9z",
    "M0 -6L6 0L0 6L-6 0z",
    "M0 -6L5.5 4.5H-5.5z",
    "M0 6L5.5 -4.5H-5.5z",
)


def plot(title: str, result: Result, base: str) -> str:
    """Return an SVG file of all ratios to `base`; nothing if there are only a few."""
    names = [name for name in result.contenders() if name != base]
    rows = {
        row: {name: result.ratios(row, name, base) for name in names}
        for row in result.rows()
    }
    every = [one for found in rows.values() for each in found.values() for one in each]
    every = [one for one in every if one > 0]
    if len(rows) < _FEW or not every:
        return ""
    step = 2 if max(*every, 1) / min(*every, 1) < 200 else 10
    low = floor(log(min(*every, 1), step))
    high = floor(log(max(*every, 1), step)) + 1

    def x(ratio: float) -> str:
        share = (log(ratio, step) - low) / (high - low)
        return f"{_LEFT + share * (_WIDTH - _LEFT - _RIGHT):.1f}"

    height = _TOP + _ROW * len(rows) + 30
    bottom = height - 24
    title = escape(f"{title}, divided by {base}")
    out = [
        _HEAD.format(width=_WIDTH, height=height, title=title, style=_STYLE),
    ]
    for power in range(low, high + 1):
        at, kind = x(float(step) ** power), "grid" if power else "one"
        label = f"{float(step) ** power:,g}"
        out += [
            f'  <path class="{kind}" d="M{at} {_TOP - 8}V{bottom}"/>',
            f'  <text class="tick" x="{at}" y="{bottom + 16}">{label}</text>',
        ]
    kinds = {name: _KINDS.get(name, len(_KINDS)) for name in names}
    for place, (name, i) in enumerate(kinds.items()):
        left = _LEFT + 75 * place
        out += [
            f'  <path class="c{i}" transform="translate({left} 38)" d="{_MARKS[i]}"/>',
            f'  <text x="{left + 10}" y="42">{escape(name)}</text>',
        ]
    for number, (row, found) in enumerate(rows.items()):
        y = _TOP + _ROW * number + _ROW // 2
        what = escape(row.rpartition(", ")[0])
        out.append(f'  <text x="16" y="{y + 4}">{what}</text>')
        for name, i in kinds.items():
            ratios = [one for one in found[name] if one > 0]
            if not ratios:
                continue
            spread = f"M{x(ratios[0])} {y}H{x(ratios[-1])}"
            middle = f"translate({x(median(ratios))} {y})"
            out += [
                f'  <path class="c{i}" d="{spread}"/>',
                f'  <path class="c{i}" transform="{middle}" d="{_MARKS[i]}"/>',
            ]
    return "\n".join([*out, "</svg>", ""])
