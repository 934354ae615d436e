"""The elements that charts are made of: SVG text, a plot frame with two scales, tick marks, labels.

Numbers are in units of the view box. Every text passes through `escape`.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

# Okabe-Ito hues, darkened until they read as text on white (contrast >= 4.5); 0 is the neutral
# colour, meant for the baseline. A page that sets --c0 ... --c6 overrides them.
COLOURS = ("#59636e", "#0065a8", "#b84a00", "#00755a", "#97427f", "#7d6200", "#3d4fb8")
"""Fallback colours by index; `colour` fields count modulo their number."""

DASHES = ("6 3", "", "2 2", "9 2", "5 2 1 2", "1 3", "10 3 2 3")
_FONT = "font:12px system-ui,-apple-system,'Segoe UI','Hiragino Sans','Noto Sans CJK JP',sans-serif"
INK = "fill:var(--ink,#1d2329)"
SOFT = "fill:var(--soft,#59636e)"
_LEFT = 46


@dataclass(frozen=True)
class ChartOptions:
    """What may be changed in any chart.

    Attributes:
        width: Width of the view box; text is 12 units high, so 420 suits a phone and a column.
        height: Height of the plot area; ignored where rows decide it.
        x_range: Ends of the horizontal axis; found from the data if None.
        y_range: Ends of the vertical axis (in heat maps: the values of the two end colours).
        mark: Reference value, drawn as a dashed line across the value axis.
        mark_label: Words for it.
        percent: Values are shares; write them as percentages.
        right: Width of the right margin, so that charts can share an axis; found if None.
        unknown: The word for nan.
    """

    width: int = 420
    height: int = 200
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    mark: float | None = None
    mark_label: str = ""
    percent: bool = False
    right: float | None = None
    unknown: str = "unknown"


class Frame:
    """The plot area and its two linear scales."""

    def __init__(
        self,
        options: ChartOptions,
        x_ends: tuple[float, float],
        y_ends: tuple[float, float],
        *,
        right: float,
        rows: int = 0,
        pitch: int = 0,
    ) -> None:
        self.options, self.x_ends, self.y_ends = options, x_ends, y_ends
        self.right = right if options.right is None else options.right
        self.x0, self.x1 = float(_LEFT), options.width - self.right
        self.top = 8.0 if rows else 26.0
        self.bottom = self.top + (rows * pitch if rows else options.height)
        self.percent = (bool(rows) and options.percent, options.percent)

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        low, high = self.x_ends
        return self.x0 + (value - low) / (high - low) * (self.x1 - self.x0)

    def y(self, value: float) -> float:
        """Return the vertical place of a value."""
        low, high = self.y_ends
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def axes(self, x_label: str, y_label: str, grid: str = "y") -> list[str]:
        """Return grid lines, tick labels, axis labels and the reference line."""
        rule = "stroke:var(--rule,#d8dde2);stroke-width:1"
        parts = []
        room = max(int((self.x1 - self.x0) / 52), 2)
        for tick in ticks(*self.x_ends, count=room):
            x = self.x(tick)
            if grid == "x":
                parts.append(path(f"M{num(x)} {num(self.top)}V{num(self.bottom)}", rule))
            words = tick_text(tick, self.percent[0])
            parts.append(label(x, self.bottom + 17, words, "middle", style=SOFT))
        for tick in ticks(*self.y_ends, count=4) if grid == "y" else []:
            y = self.y(tick)
            parts.append(path(f"M{num(self.x0)} {num(y)}H{num(self.x1)}", rule))
            words = tick_text(tick, self.percent[1])
            parts.append(label(self.x0 - 7, y + 4, words, "end", style=SOFT))
        parts.append(
            label((self.x0 + self.x1) / 2, self.bottom + 35, x_label, "middle", style=SOFT)
        )
        parts.append(label(2, 12, y_label, style=SOFT))
        return parts + self._reference(grid)

    def _reference(self, grid: str) -> list[str]:
        mark = self.options.mark
        if mark is None:
            return []
        look = "stroke:var(--ink,#1d2329);stroke-width:1;stroke-dasharray:3 3;opacity:.65"
        if grid == "x":
            return [path(f"M{num(self.x(mark))} {num(self.top)}V{num(self.bottom)}", look)]
        y = self.y(mark)
        words = label(self.x1, y - 5, self.options.mark_label, "end", style=SOFT)
        return [path(f"M{num(self.x0)} {num(y)}H{num(self.x1)}", look), words]


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Return round numbers within [low, high], at most about `count`, a step of 1, 2 or 5."""
    raw = (high - low) / max(count, 1)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(s * scale for s in (1, 2, 5, 10) if s * scale >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def width_of(text: str) -> float:
    """Estimate the width of 12-unit text: Asian wide letters are square, others a bit over half."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return 12.0 * wide + 6.9 * (len(text) - wide)


def shorten(text: str, room: float) -> str:
    """Cut text to a width, ending in an ellipsis if anything was cut."""
    if width_of(text) <= room:
        return text
    kept = text
    while kept and width_of(kept) + 8 > room:
        kept = kept[:-1]
    return kept + "\u2026"


def ends_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of the known values, widened a little where it is a single one."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    if low == high:
        return (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    return (0.0, high * 1.02) if 0 <= low < 0.4 * high else (low, high)


def spread(
    ends: list[tuple[float, str, str]], top: float, bottom: float
) -> list[tuple[float, str, str]]:
    """Move the labels apart by at least one line, keeping their order and the plot's bounds."""
    placed: list[tuple[float, str, str]] = []
    for height, label, colour in sorted(ends, key=lambda end: end[0]):
        floor = placed[-1][0] + 14 if placed else top
        placed.append((max(height, floor), label, colour))
    ceiling = bottom
    for i in range(len(placed) - 1, -1, -1):
        height, label, colour = placed[i]
        placed[i] = (min(height, ceiling), label, colour)
        ceiling = placed[i][0] - 14
    return placed


def document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return the whole <svg>, which shrinks with its container and names itself to readers."""
    w, h = num(width), num(height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        f'role="img" style="{_FONT};max-width:100%;height:auto"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )


def label(
    x: float, y: float, words: str, anchor: str = "start", *, style: str = SOFT, extra: str = ""
) -> str:
    """Return a <text> element ("" for no words); y is the baseline."""
    if not words:
        return ""
    at = f'x="{num(x)}" y="{num(y)}"'
    return f'<text {at} text-anchor="{anchor}" style="{style}"{extra}>{escape(words)}</text>'


def path(d: str, style: str) -> str:
    """Return a <path>."""
    return f'<path d="{d}" style="{style}"/>'


def rect(x: float, y: float, width: float, height: float, style: str) -> str:
    """Return a <rect>, at least half a unit wide so that 0 can be seen."""
    size = f'width="{num(max(width, 0.5))}" height="{num(height)}"'
    return f'<rect x="{num(x)}" y="{num(y)}" {size} rx="1.5" style="{style}"/>'


def circle(x: float, y: float, radius: float, colour: str, label: str) -> str:
    """Return a <circle> whose label shows on hover; small ones are see-through."""
    look = f"fill:{colour};fill-opacity:{1 if radius > 3 else 0.55}"
    head = f'<circle cx="{num(x)}" cy="{num(y)}" r="{num(radius)}" style="{look}"'
    return f"{head}><title>{escape(label)}</title></circle>" if label else f"{head}/>"


def index_of(colour: int | None, position: int) -> int:
    """Return which colour an element has: its own choice, or its position (never the neutral 0)."""
    return colour % len(COLOURS) if colour is not None else 1 + position % (len(COLOURS) - 1)


def colour_of(colour: int | None, position: int) -> str:
    """Return a colour as a CSS variable with a fallback."""
    index = index_of(colour, position)
    return f"var(--c{index},{COLOURS[index]})"


def written(value: float, options: ChartOptions) -> str:
    """Write a value in three digits, or the word for unknown."""
    if not math.isfinite(value):
        return options.unknown
    return f"{100 * value:.3g}%" if options.percent else f"{value:.3g}"


def tick_text(value: float, percent: bool) -> str:
    """Write a tick mark."""
    return f"{round(100 * value, 6):g}%" if percent else f"{value:,.10g}"


def num(value: float) -> str:
    """Write a coordinate to a tenth of a unit."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def escape(text: str) -> str:
    """Escape text for XML and HTML and drop what XML cannot hold."""
    # Control characters are not allowed in XML at all, not even escaped.
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "", text))
