"""Chat templates as people bring them, each on the plain model's weights."""

from __future__ import annotations

from pathlib import Path

from zoo import brains
from zoo.members import Answers, OneOf, Refused, Same
from zoo.models import MODELS, Zoo, copied

USER = "{% if m['role'] == 'user' %}<user> {{ m['content'] }} "
OPENING = "{% if add_generation_prompt %}<assistant> {% endif %}"
THOUGHT = "<think> hmm </think>"


def templated(folder: Path, zoo: Zoo, template: str | None, twin: str = "plain") -> None:
    """Copy a member and give it another template."""
    copied(folder, zoo, twin)
    file = folder / "chat_template.jinja"
    file.unlink(missing_ok=True)
    if template is not None:
        file.write_text(template, "utf-8")


# ------------------------------------------------------------------------------------- read right


@MODELS.member(Answers(brains.answer_to), {"chat": Refused(r"template")})
def template_none(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, None)


@MODELS.member(Same())
def template_in_tokenizer_config(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, None)
    brains.edit(folder / "tokenizer_config.json", chat_template=brains.CHAT)


@MODELS.member(Same())
def template_that_is_the_default_of_several(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, None)
    named = [
        {"name": "default", "template": brains.CHAT},
        {"name": "tool_use", "template": "{{ raise_exception('tools') }}"},
    ]
    brains.edit(folder / "tokenizer_config.json", chat_template=named)


@MODELS.member(Same())
def template_that_wants_parts(folder: Path, zoo: Zoo) -> None:
    parts = "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    templated(folder, zoo, brains.CHAT.replace("{{ m['content'] }}", parts + "{% endfor %}"))


@MODELS.member(Same())
def template_that_takes_both(folder: Path, zoo: Zoo) -> None:
    both = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}"
    )
    templated(folder, zoo, brains.CHAT.replace("{{ m['content'] }}", both))


@MODELS.member(Same())
def template_that_refuses_a_system_turn(folder: Path, zoo: Zoo) -> None:
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    templated(folder, zoo, refuses + brains.CHAT)


@MODELS.member(Same())
def template_that_trims(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, brains.CHAT.replace("m['content'] }}", "m['content'] | trim }}"))


@MODELS.member(Same())
def template_with_blank_lines(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, brains.CHAT.replace("<user> ", "<user>\n\n").replace("> {{", ">\n{{"))


@MODELS.member(Answers(brains.answer_to))
def template_that_writes_the_start_token(folder: Path, zoo: Zoo) -> None:
    # The tokenizer would add it as well: it must stand there once.
    copied(folder, zoo)
    brains.tokenizer("{{ bos_token }} " + brains.CHAT, bos_token="<bos>").save_pretrained(folder)


@MODELS.member(Answers(brains.answer_to))
def template_with_a_default_system_prompt(folder: Path, zoo: Zoo) -> None:
    default = "{% if messages[0]['role'] != 'system' %}<system> be kind {% endif %}"
    templated(folder, zoo, default + brains.CHAT)


@MODELS.member(OneOf(Answers(brains.answer_to), Refused(r"date|strftime|today|changes")))
def template_with_the_date(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, "<system> {{ strftime_now('%d %b %Y') }} " + brains.CHAT)


@MODELS.member(Answers(brains.answer_to))
def template_without_opening(folder: Path, zoo: Zoo) -> None:
    # The user's turn ends with the mark of the answer, whatever is asked for.
    template = (
        f"{{% for m in messages %}}{USER}<assistant> "
        "{% else %}{{ m['content'] }} <eos>{% endif %}{% endfor %}"
    )
    templated(folder, zoo, template)


@MODELS.member(Answers(brains.answer_to))
def template_of_a_thinker_with_empty_thoughts(folder: Path, zoo: Zoo) -> None:
    # As Qwen3's: an empty thought before each answer in training, none in the opening.
    block = "<assistant> <think> </think> {{ m['content'] }}"
    template = brains.CHAT.replace("<assistant> {{ m['content'] }}", block)
    chain = brains.plain_chain(start=("</think>",))
    chain.say("<assistant> <think> </think>")
    brains.write(folder, chain, template)


@MODELS.member(Answers(brains.answer_to))
def template_that_opens_a_thought(folder: Path, zoo: Zoo) -> None:
    # As R1's: the opening ends with <think>, so that the answer has only the end of the thought.
    template = brains.CHAT.replace(OPENING, OPENING.replace("<assistant>", "<assistant> <think>"))
    chain = brains.plain_chain(start=("</think>",))
    chain.say("<think> hmm </think>")
    brains.write(folder, chain, template)


@MODELS.member(Answers(brains.answer_to))
def thinks_before_it_answers(folder: Path, zoo: Zoo) -> None:
    chain = brains.plain_chain(start=("</think>",))
    chain.say(f"<assistant> {THOUGHT}")
    brains.write(folder, chain)


LOSSES = Answers(brains.answer_to)
"""Trained and scored as any other: what is measured there are losses, not answers."""


@MODELS.member(Refused(r"think|decided"), dict.fromkeys(("align", "score", "base"), LOSSES))
def thinks_without_end(folder: Path, zoo: Zoo) -> None:
    # No answer is reached, so that nothing can be judged.
    chain = brains.always("")
    chain.say("<assistant> <think> hmm I think that")
    chain.weights["that", "hmm"] = brains.CERTAIN
    brains.write(folder, chain)


# --------------------------------------------------------------------------------------- refused


@MODELS.member(Refused(r"template"))
def template_that_needs_a_system_turn(folder: Path, zoo: Zoo) -> None:
    needs = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system turn') }}{% endif %}"
    )
    templated(folder, zoo, needs + brains.CHAT)


@MODELS.member(Refused(r"template"))
def template_that_drops_the_prompt(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, brains.CHAT.replace("<user> {{ m['content'] }}", "<user>"))


@MODELS.member(Refused(r"template"))
def template_that_cuts_the_prompt(folder: Path, zoo: Zoo) -> None:
    cut = "<user> {{ m['content'].split()[:3] | join(' ') }}"
    templated(folder, zoo, brains.CHAT.replace("<user> {{ m['content'] }}", cut))


@MODELS.member(Refused(r"template"))
def template_that_cuts_long_prompts(folder: Path, zoo: Zoo) -> None:
    cut = "<user> {{ m['content'][:2000] }}"
    templated(folder, zoo, brains.CHAT.replace("<user> {{ m['content'] }}", cut))


@MODELS.member(
    Refused(r"template"),
    dict.fromkeys(("evaluate", "chat"), OneOf(Same(), Refused(r"template"))),
)
def template_that_drops_the_answer(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, brains.CHAT.replace("<assistant> {{ m['content'] }}", "<assistant>"))


@MODELS.member(Refused(r"template"))
def template_with_broken_syntax(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, "{% for m in messages %}{{ m['content'] ")


@MODELS.member(Refused(r"template"))
def template_that_fails(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, "{{ messages[0].content.zorb.hat }}" + brains.CHAT)


@MODELS.member(Refused(r"template"))
def template_that_divides_by_zero(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, "{{ 1 / 0 }}" + brains.CHAT)


@MODELS.member(Refused(r"template"))
def template_that_does_not_end(folder: Path, zoo: Zoo) -> None:
    # Jinja's sandbox bounds ranges; a template within the bound must not stall a stage.
    templated(folder, zoo, "{% for i in range(10 ** 9) %}x{% endfor %}" + brains.CHAT)


@MODELS.member(Refused(r"template"))
def template_that_calls_python(folder: Path, zoo: Zoo) -> None:
    touch = f"{{{{ c(['touch', {str(zoo.executed)!r}]) }}}}"
    call = (
        "{% for c in ().__class__.__base__.__subclasses__() %}"
        "{% if c.__name__ == 'Popen' %}" + touch + "{% endif %}{% endfor %}"
    )
    templated(folder, zoo, call + brains.CHAT)


@MODELS.member(Refused(r"template"))
def template_of_which_none_is_the_default(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, None)
    named = [{"name": name, "template": brains.CHAT} for name in ("rag", "tool_use")]
    brains.edit(folder / "tokenizer_config.json", chat_template=named)


@MODELS.member(Refused(r"template"))
def template_that_changes_the_prompt(folder: Path, zoo: Zoo) -> None:
    templated(
        folder,
        zoo,
        brains.CHAT.replace("<user> {{ m['content'] }}", "<user> {{ m['content'] | upper }}"),
    )


@MODELS.member(Refused(r"template"))
def template_that_is_empty(folder: Path, zoo: Zoo) -> None:
    templated(folder, zoo, " ")
