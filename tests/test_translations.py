"""Every message has exactly one translation, and a Japanese report holds no English sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path

import pytest

import holdfast
from holdfast.reports import build, verdict
from holdfast.reports.catalogue import language
from holdfast.reports.page import PAGE
from holdfast.results.run_dir import RunDir
from holdfast.texts import JOINS, UNKNOWN, Language, Text, placeholders
from test_report import full_run

ROOT = Path(holdfast.__file__).parent
JAPANESE = language("ja")
# Abbreviations and names of measures that a Japanese engineer writes in Latin letters.
NAMES = set(
    "AUROC AUPRC Ashman D BIC Benjamini Cliff Cohen CommonForgotRatio Fleiss Holm Hochberg "
    "ForgotNum Jaccard SHA Spearman FA HS UTC kappa nat sft p n t free margin Shift "
    "until_broken holdfast".split()
)


def templates() -> Iterator[str]:
    """Every English template of the code: of `Text(...)`, of the verdict, and of the page."""
    for path in ROOT.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        if "from holdfast.texts import" not in code:
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Text":
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant):
                    yield str(first.value)
    for ladder in vars(verdict).values():
        if isinstance(ladder, type) and issubclass(ladder, Enum) and ladder is not Enum:
            yield from (member.value for member in ladder)
    yield from PAGE.values()
    yield UNKNOWN


def has_words(template: str) -> bool:
    return bool(re.search("[A-Za-z]", re.sub(r"\{[^}]*\}", "", template)))


MESSAGES = sorted({template for template in templates() if has_words(template)})


def latin(text: str) -> list[str]:
    return re.findall(r"[A-Za-z_]+", re.sub(r"\{[^}]*\}", "", text))


def test_no_translation_is_missing_or_superfluous() -> None:
    assert len(MESSAGES) > 400
    assert set(MESSAGES) - set(JAPANESE.messages) == set()
    assert set(JAPANESE.messages) - set(MESSAGES) == set()
    assert set(JAPANESE.joins) == set(JOINS)


@pytest.mark.parametrize("template", MESSAGES)
def test_a_translation_has_the_placeholders_of_its_message(template: str) -> None:
    translation = JAPANESE.messages[template]
    assert translation.strip()
    assert placeholders(translation) == placeholders(template)
    assert set(latin(translation)) <= NAMES, set(latin(translation)) - NAMES


def test_sentences_end_as_sentences_do() -> None:
    for template, translation in JAPANESE.messages.items():
        if template.endswith(".") and not template.startswith("{words}"):
            assert translation[-1] in "。」）}", translation


def test_a_message_without_a_translation_stays_english() -> None:
    text = Text("{n:d} rows of {kind}", n=2, kind=Text("tea"))
    assert Language("ja", {"tea": "茶"}).say(text) == "2 rows of 茶"


def test_names_are_never_translated() -> None:
    assert JAPANESE.say("unknown") == "unknown"
    assert JAPANESE.say(Text("unknown")) == "不明"


class Visible(HTMLParser):
    """The texts that a reader sees, and those that are read aloud, without code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.hidden = 0
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style", "code", "pre")
        self.texts += [v for k, v in attrs if k in ("alt", "aria-label", "title") and v]

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style", "code", "pre")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.texts.append(data)


def test_a_japanese_page_holds_no_run_of_english_words(tmp_path: Path) -> None:
    """Two Latin words beside each other are English, unless they are names of the run."""
    run: RunDir = full_run(tmp_path)
    html = build.build(run, [], title="報告", language="ja")
    entries = " ".join(f"{e.stage} {e.name} {' '.join(e.outputs)} {e.facts}" for e in run.entries())
    for text in Visible(html).texts:
        for words in re.findall(r"[A-Za-z]{2,}(?: [A-Za-z]{2,})+", text):
            assert set(words.split()) <= NAMES or words in entries, text
