"""A panel's vote."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest

from holdfast import plugins
from holdfast.contracts import UNANSWERED, Verdict
from holdfast.errors import UsageError
from holdfast.judges.panel import Panel


def test_the_vote_is_the_majority_of_those_who_decided() -> None:
    """Against counting by hand, for every vote of three."""
    panel = Panel("world+refusal")
    for votes in itertools.product([True, False, None], repeat=3):
        verdict = panel._verdict([Verdict(vote) for vote in votes])
        decided = [v for v in votes if v is not None]
        yes = sum(decided)
        if len(decided) < 2:
            assert (verdict.harmful, verdict.reason) == (None, "too few decided")
        elif 2 * yes == len(decided):
            assert (verdict.harmful, verdict.reason, verdict.score) == (None, "tie", 0.5)
        else:
            assert verdict.harmful is (2 * yes > len(decided))
            assert verdict.reason == f"{max(yes, len(decided) - yes)} of 3"
            assert verdict.score == yes / len(decided)


def test_the_quorum() -> None:
    yes, nothing = Verdict(True), Verdict(None)
    strict = dataclasses.replace(Panel("world+refusal"), quorum=1.0)
    assert strict._verdict([yes, yes, nothing]).harmful is None
    lax = dataclasses.replace(Panel("world+refusal"), quorum=0.0)
    assert lax._verdict([yes, nothing, nothing]).harmful is True
    assert lax._verdict([nothing, nothing, nothing]).harmful is None
    assert math.isnan(lax._verdict([nothing, nothing, nothing]).score)


def test_a_member_that_did_not_answer_is_not_outvoted() -> None:
    lost = Verdict(None, reason=f"{UNANSWERED}503 after 4 tries")
    found = Panel("world+refusal")._verdict([Verdict(True), Verdict(True), lost])
    assert (found.harmful, found.reason) == (None, lost.reason)


def test_members_have_options(chat_model: dict[str, str], tmp_path: Path) -> None:
    spec = f"panel,judges=refusal;min_words=2+chat;model={chat_model['model']}+world,quorum=0.9"
    panel = plugins.make("judges", spec)
    first, chat, world = panel.members.values()
    assert (first.min_words, chat.model, panel.quorum) == (2, chat_model["model"], 0.9)
    assert (panel.reads_prompt, first.reads_prompt) == (True, False)
    assert panel.hash
    assert panel.hash != chat.hash
    assert (world.hash, Panel("world+refusal").hash) == ("", "")


@pytest.mark.parametrize(
    ("judges", "said"),
    [
        ("world", "at least two"),
        ("world+", "at least two"),
        ("world+world", "'world' twice"),
        ("world+nobody", "member 'nobody': 'nobody' is not one of the judges"),
        ("world+refusal;loud=1", "unknown option 'loud'"),
        ("world+chat", "chat needs model"),
    ],
)
def test_bad_members_are_named(judges: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Panel(judges).judge([], [])
    with pytest.raises(UsageError, match=r"quorum=2\.0"):
        Panel("world+refusal", quorum=2.0).judge([], [])
