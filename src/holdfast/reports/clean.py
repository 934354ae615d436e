"""Clean SVG before it is put into the report: a run directory may have been tampered with.

The text is parsed and written anew from allow-lists, so what is not known to be harmless (scripts,
event handlers, foreign objects, style sheets, links to anywhere) cannot get through.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

_TAGS = frozenset(
    "svg g path rect circle ellipse line polyline polygon text tspan title desc defs clipPath use "
    "linearGradient radialGradient stop".split()
)
_ATTRIBUTES = frozenset(
    "viewBox width height x y x1 x2 y1 y2 cx cy r rx ry dx dy d points transform fill fill-opacity "
    "fill-rule stroke stroke-width stroke-opacity stroke-dasharray stroke-linecap stroke-linejoin "
    "opacity text-anchor dominant-baseline font-size font-family font-weight font-style clip-path "
    "clip-rule offset stop-color stop-opacity gradientUnits gradientTransform clipPathUnits "
    "preserveAspectRatio role aria-label aria-hidden style id href".split()
)
_PROPERTIES = frozenset(
    "font font-size font-family font-weight font-style fill fill-opacity fill-rule stroke "
    "stroke-width stroke-opacity stroke-dasharray stroke-dashoffset stroke-linecap "
    "stroke-linejoin stroke-miterlimit opacity text-anchor dominant-baseline max-width height "
    "clip-path clip-rule stop-color stop-opacity".split()
)
_LOCAL = re.compile(r"""url\(\s*["']?#([\w.-]+)["']?\s*\)""")
_SAFE_VALUE = re.compile(r"[\w\s.,#%()'\"+-]*", re.ASCII)
_FUNCTIONS = re.compile(r"([\w-]*)\(")
_ALLOWED_FUNCTIONS = frozenset("var rgb rgba hsl translate rotate scale matrix skewX skewY".split())


def sanitise(svg: str, prefix: str) -> str:
    """Return the SVG with nothing but drawing in it, ready to stand inside an HTML page.

    Args:
        svg: An SVG document.
        prefix: Put before every id, so that the figures of a page cannot refer to each other.

    Returns:
        The clean <svg> element; "" if the text is not SVG or cannot be parsed.
    """
    if "<!ENTITY" in svg:
        return ""
    try:
        root = ET.fromstring(svg)
    except (ET.ParseError, ValueError):
        return ""
    if _local_name(root.tag) != "svg":
        return ""
    clean = _copy(root, prefix)
    clean.set("role", "img")
    return ET.tostring(clean, encoding="unicode")


def _copy(element: ET.Element, prefix: str) -> ET.Element:
    copy = ET.Element(_local_name(element.tag))
    for key, value in element.attrib.items():
        name = _local_name(key)
        kept = _attribute(name, value, prefix) if name in _ATTRIBUTES else None
        if kept is not None:
            copy.set(name, kept)
    copy.text = element.text
    for child in element:
        if _local_name(child.tag) in _TAGS:
            inner = _copy(child, prefix)
            inner.tail = child.tail
            copy.append(inner)
    return copy


def _attribute(name: str, value: str, prefix: str) -> str | None:
    if name == "id":
        return prefix + re.sub(r"[^\w.-]", "-", value)
    if name == "href":
        return f"#{prefix}{value[1:]}" if re.fullmatch(r"#[\w.-]+", value) else None
    if name == "style":
        return _style(value, prefix)
    if name in ("aria-label", "role"):
        return value
    return _value(value, prefix)


def _style(text: str, prefix: str) -> str:
    kept = []
    for declaration in text.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        clean = _value(value, prefix)
        if key in _PROPERTIES and clean:
            kept.append(f"{key}:{clean}")
    return ";".join(kept)


def _value(value: str, prefix: str) -> str | None:
    """Return a presentation value, local references renamed; None if it may do anything else."""
    rest = _LOCAL.sub("", value)
    functions = set(_FUNCTIONS.findall(rest)) - {""}
    if not _SAFE_VALUE.fullmatch(rest) or not functions <= _ALLOWED_FUNCTIONS:
        return None
    return _LOCAL.sub(lambda match: f"url(#{prefix}{match[1]})", value)


def _local_name(tag: object) -> str:
    # Comments and processing instructions carry a function as their tag.
    if not isinstance(tag, str):
        return ""
    space, _, name = tag.rpartition("}")
    known = space in ("", "{http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink")
    return name if known else ""
