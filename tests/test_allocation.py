"""Freed memory stays with a command, so that the next step finds its pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
PROGRAM = """
import ctypes, resource
from holdfast.runtime import allocation

allocation.keep_pages()

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.create_string_buffer(40 * 2**20)  # cleared, so every page is touched
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [pages() for _ in range(3)]
allocation.release_pages()
print(*found, pages())
"""


def pages(**environment: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return [int(number) for number in done.stdout.split()]


def test_the_second_block_has_the_pages_of_the_first_until_they_are_released() -> None:
    _, second, third, after_release = pages()
    assert max(second, third) < 100
    assert after_release > 5_000


@pytest.mark.parametrize(
    "own", [{"MALLOC_TOP_PAD_": "4096"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}]
)
def test_what_the_user_has_set_stays(own: dict[str, str]) -> None:
    assert min(pages(**own)) > 5_000
