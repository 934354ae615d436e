"""A panel's vote."""

from __future__ import annotations

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
    panel = Panel(judges=("world", "refusal"))
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
    strict = Panel(judges=("world", "refusal")).changed(quorum=1.0)
    assert strict._verdict([yes, yes, nothing]).harmful is None
    lax = Panel(judges=("world", "refusal")).changed(quorum=0.0)
    assert lax._verdict([yes, nothing, nothing]).harmful is True
    assert lax._verdict([nothing, nothing, nothing]).harmful is None
    assert math.isnan(lax._verdict([nothing, nothing, nothing]).score)


def test_a_member_that_did_not_answer_is_not_outvoted() -> None:
    lost = Verdict(None, reason=f"{UNANSWERED}503 after 4 tries")
    found = Panel(judges=("world", "refusal"))._verdict([Verdict(True), Verdict(True), lost])
    assert (found.harmful, found.reason) == (None, lost.reason)


def test_members_have_options(chat_model: dict[str, str], tmp_path: Path) -> None:
    spec = (
        f"panel,judges=[(refusal,min_words=2),(chat,model={chat_model['model']}),world],quorum=0.9"
    )
    panel = plugins.make("judges", spec)
    first, chat, world = panel.members.values()
    assert (first.min_words, chat.model, panel.quorum) == (2, chat_model["model"], 0.9)
    assert (panel.reads_prompt, first.reads_prompt) == (True, False)
    assert panel.hash
    assert panel.hash != chat.hash
    assert (world.hash, Panel(judges=("world", "refusal")).hash) == ("", "")


@pytest.mark.parametrize(
    ("judges", "said"),
    [
        ("world", "judges=world must be a list of 2 or more specs"),
        ("[world]", "judges=.world. must be a list of 2 or more specs"),
        ("[world,world]", "judges=.world,world. names 'world' twice"),
        ("[world,nobody]", "member 'nobody': 'nobody' is not one of the judges"),
        ("[world,(refusal,loud=1)]", "member 'refusal,loud=1': refusal: loud is not an option"),
        ("[world,chat]", "member 'chat': chat: model is required; give it as 'chat,model=...'"),
    ],
)
def test_bad_members_are_named(judges: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plugins.make("judges", f"panel,judges={judges}").judge([], [])
    with pytest.raises(UsageError, match=r"quorum=2\.0 must be a number from 0 to 1"):
        Panel(judges=("world", "refusal"), quorum=2.0).judge([], [])
