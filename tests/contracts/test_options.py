"""What the options of every plug-in must be, and what every wrong one is answered with."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast import plugins
from holdfast.cli.pages import pages
from holdfast.cli.reference import details, options_class
from holdfast.errors import UsageError
from holdfast.options import Description, Options, describe, option_fields
from holdfast.specs import parse, value_text

EVERY = [(kind, name) for kind in plugins.KINDS for name in plugins.available(kind)]
OWN = pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{k}-{n}" for k, n in EVERY])


def build(kind: str, name: str, options: str = "") -> Options:
    """Build the options as a command line would, with something for each that is required."""
    cls = options_class(kind, name)
    spec = parse(f"{name}{options}")
    required: dict[str, Any] = {
        option.name: ("a", "b") if option.type.startswith("list") else "a"
        for option in describe(cls)
        if option.required
    }
    supplied = {
        field: object()
        for field, info in cls.model_fields.items()
        if field not in option_fields(cls) and info.is_required()
    }
    if kind == "methods":
        return cls(**{**required, **spec.options, **supplied})
    texts = [f",{key}={value_text(value)}" for key, value in required.items()]
    made: Options = plugins.make(kind, f"{name}{''.join(texts)}{options}", **supplied)
    return made


def described(kind: str, name: str) -> list[Description]:
    return describe(options_class(kind, name))


def refused(kind: str, name: str, options: str) -> str:
    with pytest.raises(UsageError) as caught:
        build(kind, name, options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@OWN
def test_every_option_has_help_and_a_type_that_a_person_can_read(kind: str, name: str) -> None:
    for option in described(kind, name):
        assert len(option.help.split()) >= 3, option.name
        assert option.help[-1] in ".)", option.name
        assert not {"object", "Any", "None", "Literal", "NoneType"} & set(option.type.split())
        assert not set("[]<>") & set(option.type), option.name


@OWN
def test_what_is_described_as_the_default_can_be_typed_and_is_the_default(
    kind: str, name: str
) -> None:
    plain = build(kind, name)
    defaults = [option for option in described(kind, name) if not option.required]
    typed = "".join(f",{option.name}={option.default_text}" for option in defaults)
    assert build(kind, name, typed).option_values() == plain.option_values()
    for option in defaults:
        assert getattr(plain, option.name) == option.default


@OWN
def test_an_unknown_option_and_one_of_another_plug_in(kind: str, name: str) -> None:
    own = {option.name for option in described(kind, name)}
    others = {option.name for k, n in EVERY if k == kind for option in described(k, n)}
    supplied = set(options_class(kind, name).model_fields) - own
    for other in ["nonsense", *sorted(others - own - supplied)[:1], *sorted(supplied)[:1]]:
        if kind == "methods" and other in supplied:
            continue
        message = refused(kind, name, f",{other}=1")
        assert f"{other} is not an option" in message
        for option in own:
            assert option in message


@OWN
def test_an_ill_typed_value_and_one_out_of_range(kind: str, name: str) -> None:
    for option in described(kind, name):
        if option.required:
            continue
        numbers = option.type in ("number", "whole number")
        if numbers or option.choices or option.type == "true or false":
            message = refused(kind, name, f",{option.name}=much")
            assert f"{option.name}=much must be " in message
            assert option.type in message
        if numbers and option.range:
            wrong = "-1000000" if option.range.startswith(("at least", "above", "from")) else "1e9"
            message = refused(kind, name, f",{option.name}={wrong}")
            assert f"{option.name}={wrong} must be " in message
            assert option.range in message


@OWN
def test_a_spec_that_does_not_parse(kind: str, name: str) -> None:
    for rest in (",nonsense", ",a=[", ",a=1,a=2", ",a='b"):
        message = refused(kind, name, rest)
        assert message.startswith(repr(f"{name}{rest}"))
        assert "(character " in message


@OWN
def test_the_terminal_and_the_documentation_show_every_option(kind: str, name: str) -> None:
    shown = details(kind, name)
    assert shown["what"]
    section = pages()["plugins.md"].partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    for option, row in zip(described(kind, name), shown["options"], strict=True):
        assert (row["name"], row["help"]) == (option.name, option.help)
        assert f"\n| `{option.name}` | {option.type}" in section
