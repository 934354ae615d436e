"""Puts figures into a page that loads nothing: Vega with its expression interpreter, inlined once.

The interpreter evaluates Vega's expressions without `eval`, so that the page's Content-Security-
Policy allows one script, by its hash. Every figure is there twice: live, and as a still picture for
print and for readers without JavaScript.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from holdfast.charts.drawing import draw, specification
from holdfast.charts.figures import Figure
from holdfast.charts.themes import DARK, LIGHT
from holdfast.texts import ENGLISH, Language

_DRAW = """
(() => {
  const data = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const inScheme = (text) => dark.matches
    ? Object.entries(data.dark).reduce((t, [light, other]) => t.replaceAll(light, other), text)
    : text;
  const draw = async () => {
    for (const [id, specification] of Object.entries(data.figures)) {
      const place = document.getElementById(id);
      try {
        await vegaEmbed(place, JSON.parse(inScheme(JSON.stringify(specification))), {
          ast: true, actions: false, renderer: "svg", logLevel: 1,
          tooltip: {theme: dark.matches ? "dark" : "light"},
        });
        place.closest("figure").classList.add("live");
      } catch (error) { console.error(id, error); }
    }
  };
  draw();
  dark.addEventListener("change", draw);
})();
"""


@dataclass(frozen=True)
class Still:
    """A picture of a figure.

    Attributes:
        source: A data URL.
        words: What a screen reader says.
        width: Width at which it was drawn, in pixels.
    """

    source: str
    words: str
    width: int


@dataclass(frozen=True)
class Embedded:
    """A page's figures, ready to be written into it.

    Attributes:
        stills: The picture of each figure by element id.
        data: What `data_of` returns.
        script: What `script` returns; empty without figures.
    """

    stills: dict[str, Still]
    data: str
    script: str


def embed(
    figures: Mapping[str, Figure], language: Language = ENGLISH, *, width: int = 460
) -> Embedded:
    """Draw the figures of a page, live and still.

    Args:
        figures: The figures by element id.
        language: Says labels, titles and numbers.
        width: Width of the still pictures in pixels.
    """
    if not figures:
        return Embedded({}, data_of({}, language), "")
    # The renderer releases the GIL: while it draws one figure, the next is described here.
    with ThreadPoolExecutor(1) as renderer:
        bundle = renderer.submit(script)
        drawings = {
            name: renderer.submit(draw, specification(figure, language, width=width))
            for name, figure in figures.items()
        }
        data = data_of(figures, language)
        stills = {
            name: Still(_data_url(drawing.result()), language.say(figures[name].title), width)
            for name, drawing in drawings.items()
        }
    return Embedded(stills, data, bundle.result())


def _data_url(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def data_of(figures: Mapping[str, Figure], language: Language = ENGLISH) -> str:
    """Return the JSON of a page's figures by element id, safe inside a <script> element."""
    specifications = {name: specification(f, language) for name, f in figures.items()}
    text = json.dumps({"figures": specifications, "dark": _darkened()}, ensure_ascii=False)
    return text.replace("<", "\\u003c")


@cache
def script() -> str:
    """Return the JavaScript that draws a page's figures, Vega included (about 0.9 MB)."""
    import vl_convert

    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub lacks a default
    return (bundle + _DRAW).replace("</script", "<\\/script")


def hash_of(code: str) -> str:
    """Return a script's source expression for a Content-Security-Policy."""
    digest = hashlib.sha256(code.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _darkened() -> dict[str, Any]:
    """Return light colour -> dark colour."""
    pairs = [(getattr(LIGHT, name), getattr(DARK, name)) for name in ("paper", "ink", "soft")]
    pairs += [(LIGHT.rule, DARK.rule), (LIGHT.ramp_ink, DARK.ramp_ink)]
    pairs += zip(LIGHT.colours, DARK.colours, strict=True)
    pairs += zip(LIGHT.ramp, DARK.ramp, strict=True)
    return dict(pairs)
