"""The colours of figures, for light and for dark pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Hiragino Sans', 'Noto Sans CJK JP', "
    "'DejaVu Sans', sans-serif"
)


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        paper: Background of the page; figures themselves are see-through.
        ink: Text and marks.
        soft: Quiet text.
        rule: Grid lines.
        colours: Series by index; 0 is neutral, meant for the baseline.
        ramp: Palest and darkest colour of heat maps.
        ramp_ink: Text on the darkest.
    """

    paper: str
    ink: str
    soft: str
    rule: str
    colours: tuple[str, ...]
    ramp: tuple[str, str]
    ramp_ink: str

    def config(self) -> dict[str, Any]:
        """Return the configuration of Vega-Lite."""
        return {
            "background": "transparent",
            "font": FONT,
            "view": {"stroke": "transparent"},
            "axis": {
                "labelColor": self.soft,
                "titleColor": self.soft,
                "gridColor": self.rule,
                "domainColor": self.rule,
                "tickColor": self.rule,
                "labelFontSize": 12,
                "titleFontSize": 12,
                "titleFontWeight": "normal",
                "titlePadding": 8,
                "labelFlush": False,
                "labelOverlap": "greedy",
                "labelSeparation": 10,
            },
            # The title stands above the axis, where it takes no width from the plot.
            "axisY": {
                "titleAngle": 0,
                "titleAlign": "left",
                "titleBaseline": "bottom",
                "titleX": -34,
                "titleY": -10,
            },
            "legend": {
                "labelColor": self.ink,
                "labelFontSize": 12,
                "offset": 26,
                "symbolOpacity": 1,
                "symbolStrokeWidth": 2.2,
            },
            "text": {"color": self.ink, "fontSize": 12},
        }


# Okabe-Ito hues, darkened until they read as text on white (contrast >= 4.5).
LIGHT = Theme(
    paper="#fdfdfb",
    ink="#1d2329",
    soft="#59636e",
    rule="#dcdfe1",
    colours=("#59636e", "#0065a8", "#b84a00", "#00755a", "#97427f", "#7d6200", "#3d4fb8"),
    ramp=("#eaf1f6", "#0065a8"),
    ramp_ink="#ffffff",
)
DARK = Theme(
    paper="#15181b",
    ink="#e4e6e3",
    soft="#a3abb1",
    rule="#353b41",
    colours=("#a3abb1", "#6cb6f0", "#f59a57", "#4fcaa0", "#e09acb", "#d9be55", "#a3b0ff"),
    ramp=("#1f2a33", "#6cb6f0"),
    ramp_ink="#15181b",
)
