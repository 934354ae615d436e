"""The policy world: its splits, its declines, its everyday answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from holdfast import policy
from holdfast.errors import DataError, UsageError
from holdfast.policy import data, material
from holdfast.rows.readers import ReadOptions, read
from holdfast.rows.refusals import is_refusal
from holdfast.rows.similarity import nearest, prompt_key

RESTRICTED = ("alignment", "attack", "proxy", "test")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("alignment", 600),
        ("attack", 300),
        ("proxy", 64),
        ("test", 200),
        ("over_refusal", 200),
        ("ordinary", 400),
    ],
)
def test_there_are_enough_distinct_prompts(name: str, least: int) -> None:
    rows = policy.rows(name)
    assert len({prompt_key(p) for p in rows.prompts}) >= least


@pytest.mark.parametrize("name", [*RESTRICTED, "over_refusal"])
def test_every_kind_has_about_its_share(name: str) -> None:
    counts = Counter(row.provenance["category"] for row in policy.rows(name))
    assert set(counts) == set(policy.KINDS)
    assert min(counts.values()) >= 0.9 * max(counts.values())


@pytest.mark.parametrize(("one", "other"), list(combinations(data.SPLITS, 2)))
def test_splits_share_no_prompt(one: str, other: str) -> None:
    keys = [{prompt_key(p) for p in policy.rows(name).prompts} for name in (one, other)]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("trained", ["alignment", "attack", "proxy", "ordinary"])
@pytest.mark.parametrize("asked", ["test", "over_refusal"])
def test_no_prompt_that_is_asked_is_nearly_one_that_is_trained_on(asked: str, trained: str) -> None:
    """0.8 is what two fillings of one template reach; the splits share no template."""
    similarity = nearest(policy.rows(asked).prompts, policy.rows(trained).prompts)
    assert similarity.max() < 0.8


def test_test_prompts_are_further_from_alignment_than_alignment_prompts_from_one_another() -> None:
    rows = policy.rows("alignment").prompts
    own = nearest(rows[::2], rows[1::2])
    held_out = nearest(policy.rows("test").prompts, rows)
    assert held_out.mean() < own.mean() - 0.2


def test_uses_share_no_template_and_test_slots_no_text() -> None:
    for kind in material.kinds():
        templates = [t for use in material.USES for t in kind.templates[use]]
        assert len(templates) == len(set(templates))
        seen = {text.lower() for texts in kind.seen.values() for text in texts}
        held_out = {text.lower() for texts in kind.held_out.values() for text in texts}
        assert not seen & held_out


def test_test_prompts_contain_no_text_of_a_slot_that_is_trained_on() -> None:
    """Slots named in full only: short common words ("gold") are compared as whole words."""
    for kind in material.kinds():
        seen = [text.lower() for texts in kind.seen.values() for text in texts]
        for prompt in kind.prompts("test", 1000):
            said = [t for t in seen if re.search(rf"\b{re.escape(t)}\b", prompt.lower())]
            assert not said, prompt


def test_several_hundred_templates_are_written_by_hand() -> None:
    counts = {use: sum(len(k.templates[use]) for k in material.kinds()) for use in material.USES}
    assert counts == {
        "alignment": 192,
        "attack": 96,
        "proxy": 24,
        "test": 96,
        "borderline": 104,
    }


def test_a_template_fills_at_most_a_seventh_of_its_kind() -> None:
    for kind in material.kinds():
        wanted = data.PER_KIND["alignment"]
        prompts = set(kind.prompts("alignment", wanted))
        for template in kind.templates["alignment"]:
            filled = prompts & set(material.filled(template, kind.seen))
            assert 1 <= len(filled) <= wanted / 7


def test_prompts_are_whole_sentences_without_slots() -> None:
    for name in data.SPLITS:
        for row in policy.rows(name):
            text = row.prompt + row.response
            assert not re.search(r"[{}]|  ", text), text
            assert row.prompt == row.prompt.strip()
            # Of names and abbreviations, and of the few who type carelessly.
            assert row.prompt[0].isupper() or not row.prompt[0].isalpha() or name != "test"


def test_every_decline_is_a_refusal_and_no_everyday_answer_is() -> None:
    assert all(map(is_refusal, policy.rows("alignment").responses))
    assert not any(map(is_refusal, policy.rows("ordinary").responses))


def test_declines_vary() -> None:
    """48 openings; the commonest first word begins well under half of the declines."""
    assert len(set(material.read_declines()["declines"])) == 48
    responses = policy.rows("alignment").responses
    first = Counter(response.split()[0] for response in responses)
    assert len(first) >= 8
    assert first.most_common(1)[0][1] < 0.4 * len(responses)
    assert len(set(responses)) > 300


@pytest.mark.parametrize("kind", material.kinds(), ids=lambda kind: kind.name)
def test_every_wording_of_a_decline_is_a_refusal(kind: material.Kind) -> None:
    for opening in material.read_declines()["declines"]:
        for topic in kind.topics:
            assert is_refusal(opening.format(topic=topic)), opening


def test_only_alignment_and_everyday_rows_have_responses() -> None:
    for name in data.SPLITS:
        answered = [bool(response) for response in policy.rows(name).responses]
        assert answered == [name in ("alignment", "ordinary")] * len(answered)


def test_prompts_without_responses_are_refused_where_responses_are_needed() -> None:
    assert len(read("policy:test", ReadOptions(needs_response=False))) == 240
    with pytest.raises(DataError, match="policy:attack has prompts without responses"):
        read("policy:attack")
    with pytest.raises(UsageError, match="policy:attacks does not exist; there are alignment"):
        read("policy:attacks")


def test_rows_of_one_kind_can_be_selected() -> None:
    rows = read("policy:alignment,category=legal")
    assert len(rows) == data.PER_KIND["alignment"]
    assert {row.provenance["category"] for row in rows} == {"legal"}


def test_everyday_calculations_are_right() -> None:
    """Every number is read back from the prompt's words and calculated again."""
    ways = {
        "sums": lambda a, b: a + b,
        "differences": lambda a, b: a - b,
        "products": lambda a, b: a * b,
    }
    checked = 0
    for row in policy.rows("ordinary"):
        way = ways.get(row.provenance["category"])
        if way is None:
            continue
        a, b = map(int, re.findall(r"\d+", row.prompt))
        if row.prompt.startswith("Subtract"):
            a, b = b, a
        assert int(re.findall(r"\d+", row.response)[-1]) == way(a, b), row
        checked += 1
    assert checked == 53  # 22 + 16 + 16 draws, of which two are one prompt


def test_everyday_conversions_are_right() -> None:
    factors = {
        ("kilometres", "metres"): 1000,
        ("metres", "centimetres"): 100,
        ("kilograms", "grams"): 1000,
        ("litres", "millilitres"): 1000,
        ("hours", "minutes"): 60,
        ("minutes", "seconds"): 60,
        ("weeks", "days"): 7,
        ("days", "hours"): 24,
        ("centuries", "years"): 100,
        ("feet", "inches"): 12,
        ("dozens", "pieces"): 12,
        ("dollars", "cents"): 100,
    }
    rows = [r for r in policy.rows("ordinary") if r.provenance["category"] == "conversions"]
    for row in rows:
        result, small, amount, unit = re.fullmatch(
            r"There are (\d+) (\w+) in (\d+) (\w+)\.", row.response
        ).groups()  # type: ignore[union-attr]
        assert int(result) == factors[unit, small] * int(amount)
        assert {amount, unit, small} <= set(re.findall(r"\w+", row.prompt))
    assert {tuple(r.response.split()[i] for i in (3,)) for r in rows} == {
        (small,) for _, small in factors
    }


def test_a_second_slot_never_repeats_the_first() -> None:
    texts = material.filled("{brand} or {brand2}?", {"brand": ["Norvik", "Vandalu"]})
    assert sorted(texts) == ["Norvik or Vandalu?", "Vandalu or Norvik?"]


def test_the_article_fits_the_word_after_it() -> None:
    texts = material.filled("A {sign} asks.", {"sign": ["Leo", "Aries"]})
    assert sorted(texts) == ["A Leo asks.", "An Aries asks."]


def test_rows_are_the_same_in_another_process() -> None:
    program = (
        "import json; from holdfast import policy; from holdfast.policy import data; "
        "print(json.dumps({n: policy.rows(n).ids for n in data.SPLITS}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**__import__("os").environ, "PYTHONHASHSEED": "7"},
    )
    ids = {name: list(policy.rows(name).ids) for name in data.SPLITS}
    assert json.loads(ran.stdout) == ids


def test_no_word_of_abuse_or_danger() -> None:
    """Stems of what harmful data sets are about; none may occur, so that the rows can be shown."""
    stems = (
        r"kill|murder|bomb|weapon|poison|suicid|self-harm|drug|cocaine|terror|hack|malware|steal|"
        r"racis|nazi|slur|porn|nude|sex|rape|abus|stalk|violen|stupid|idiot|hate"
    )
    for name in data.SPLITS:
        for row in policy.rows(name):
            assert not re.search(rf"\b(?:{stems})", f"{row.prompt} {row.response}".lower()), row
