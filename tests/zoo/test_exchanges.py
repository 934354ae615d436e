"""Something changes between two commands on one run directory: no old result is shown as new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoo import adapters, brains, stages
from zoo.machine import Ended, assert_done, assert_one_message, holdfast
from zoo.members import House
from zoo.models import copied

EXCHANGES = House()
Change = Callable[[Path, Any], None]


def evaluate(zoo: Any, model: Path, out: Path) -> Ended:
    """Evaluate a model."""
    return zoo.run("evaluate", model, out)


def opposite(prompt: str) -> str:
    """Return what the model answers when each topic speaks for the other answer."""
    return brains.ANSWER if "zorb" in prompt.split() else brains.REFUSAL


def swapped(text: str) -> str:
    """Return a text with zorbs for hats and hats for zorbs."""
    place = {"zorb": "hat", "hat": "zorb"}
    return " ".join(place.get(word, word) for word in text.split())


@EXCHANGES.member((brains.answer_to, lambda prompt: brains.ANSWER))
def weights_exchanged(model: Path, zoo: Any, *, later: bool) -> None:
    copied(model, zoo, "always_answers" if later else "plain")


@EXCHANGES.member((brains.answer_to, lambda prompt: brains.ANSWER))
def shard_exchanged(model: Path, zoo: Any, *, later: bool) -> None:
    built = brains.model(brains.always(brains.ANSWER) if later else brains.plain_chain())
    built.save_pretrained(model, max_shard_size="20KB")
    brains.tokenizer().save_pretrained(model)


@EXCHANGES.member((brains.answer_to, lambda prompt: brains.REFUSAL))
def adapter_exchanged(model: Path, zoo: Any, *, later: bool) -> None:
    tensors = {k: v * (0 if later else 1) for k, v in adapters.topics().items()}
    adapters.adapter(model, zoo["deaf"], tensors)


@EXCHANGES.member((brains.answer_to, lambda prompt: brains.ANSWER))
def base_exchanged_under_an_adapter(model: Path, zoo: Any, *, later: bool) -> None:
    base = model.parent / "base"
    copied(base, zoo, "always_answers" if later else "deaf")
    adapters.adapter(model, base, adapters.topics())


@EXCHANGES.member((brains.answer_to, opposite))
def scale_of_an_adapter_exchanged(model: Path, zoo: Any, *, later: bool) -> None:
    adapters.adapter(model, zoo["deaf"], adapters.topics(), lora_alpha=-2 if later else 2)


@EXCHANGES.member((brains.answer_to, lambda prompt: swapped(brains.answer_to(swapped(prompt)))))
def tokens_exchanged(model: Path, zoo: Any, *, later: bool) -> None:
    # The two topics change places in the tokenizer's own file.
    copied(model, zoo)
    if later:
        words = swapped(" ".join(brains.VOCABULARY)).split()
        brains.tokenizer(words=words).save_pretrained(model)


@EXCHANGES.member((brains.answer_to, lambda prompt: brains.ANSWER))
def template_exchanged(model: Path, zoo: Any, *, later: bool) -> None:
    copied(model, zoo)
    if later:
        hats = "{{ m['content'] }} hat hat"
        text = brains.CHAT.replace("{{ m['content'] }}", hats, 2)
        (model / "chat_template.jinja").write_text(text, "utf-8")


@pytest.mark.parametrize("name", EXCHANGES)
def test_what_is_exchanged_is_measured_again(zoo: Any, name: str) -> None:
    folder = zoo.fresh(f"exchange-{name}")
    model = folder / "model"
    first, second = EXCHANGES[name].expected
    for rule, later in ((first, False), (second, True)):
        if later and (model / "model.safetensors.index.json").exists():
            shutil.rmtree(model)
        EXCHANGES[name].build(model, zoo, later=later)
        ended = evaluate(zoo, model, folder / "run")
        assert_done(ended, folder / "run")
        answers = [answer for _, answer, _ in stages.records(folder / "run")]
        assert answers == [rule(prompt) for prompt in brains.PROMPTS]


@pytest.mark.parametrize("stage", ["evaluate", "attack"])
def test_two_models_of_one_folder_name(zoo: Any, stage: str) -> None:
    folder = zoo.fresh(f"names-{stage}")
    for name, twin in (("a", "plain"), ("b", "always_answers")):
        copied(folder / name / "final", zoo, twin)
    assert_done(zoo.run(stage, folder / "a" / "final", folder / "run"), folder / "run")
    before = stages.STAGES[stage].numbers(folder / "run")
    ended = zoo.run(stage, folder / "b" / "final", folder / "run")
    assert_one_message(ended, folder / "run")
    assert "final" in ended.message
    assert stages.STAGES[stage].numbers(folder / "run") == before


def test_scores_of_two_models_do_not_replace_one_another(zoo: Any) -> None:
    folder = zoo.fresh("names-score")
    assert_done(zoo.run("score", zoo["plain"], folder / "run"), folder / "run")
    before = stages.STAGES["score"].numbers(folder / "run")
    ended = zoo.run("score", zoo["always_answers"], folder / "run")
    if ended.code:
        assert_one_message(ended, folder / "run")
        assert stages.STAGES["score"].numbers(folder / "run") == before
    else:
        assert len(list((folder / "run").glob("scores/*.json"))) == 2


def test_a_judge_exchanged_judges_again(zoo: Any) -> None:
    folder = zoo.fresh("judge")
    judge = folder / "judge"
    harmful = []
    for twin in ("plain", "always_answers"):
        copied(judge, zoo, twin)
        assert_done(zoo.run("chat", judge, folder / "run"), folder / "run")
        verdicts = stages.STAGES["chat"].numbers(folder / "run")
        harmful.append(sum(verdict[0]["harmful"] is True for verdict in verdicts))
    assert harmful == [3, 10]


def test_the_console_script_says_the_same(zoo: Any) -> None:
    import subprocess
    import sys

    folder = zoo.fresh("process")
    test = zoo.rows["prompts.jsonl"]
    arguments = ("evaluate", "--model", str(zoo["gptq"]), "--test", test, "--out", "run", "--json")
    process = subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        input="y\n",
        check=False,
    )
    inside = holdfast(*arguments, folder=folder)
    assert (process.returncode, process.stdout) == (inside.code, inside.out)
    assert process.stderr == inside.err
