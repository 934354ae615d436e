"""One grammar for every spec; what is written is what is parsed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import UsageError
from holdfast.specs import Bare, Spec, parse, parse_value, untyped, write

KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(
    alphabet="ab ,=/:+|;()[]{}'\"\\\n", max_size=12
)
NAMES = TEXTS.filter(bool)


def values() -> st.SearchStrategy[Any]:
    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists = st.lists(inner, max_size=3).map(tuple)
        specs = st.builds(Spec, NAMES, st.dictionaries(KEYS, inner, max_size=3))
        return lists | specs

    return st.recursive(TEXTS, nested, max_leaves=8)


@given(NAMES, st.dictionaries(KEYS, values(), max_size=4))
def test_what_is_written_is_what_is_parsed(name: str, options: dict[str, Any]) -> None:
    assert parse(write(name, options)) == Spec(name, options)


@given(NAMES, st.dictionaries(KEYS, values(), max_size=4))
def test_a_parsed_spec_is_written_as_it_was(name: str, options: dict[str, Any]) -> None:
    text = write(name, options)
    assert str(parse(text)) == text


@given(TEXTS)
def test_any_text_is_parsed_or_refused_with_the_text_and_a_position(text: str) -> None:
    try:
        spec = parse(text)
    except UsageError as error:
        message = str(error)
    else:
        message = f"{text!r} character"
        assert parse(str(spec)) == spec
    assert message.startswith(repr(text))
    assert "character" in message


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("world", "world", {}),
        ("sst2,train=a/b.tsv,n=3", "sst2", {"train": "a/b.tsv", "n": "3"}),
        ("m, rho = 0.1 ,on=true", "m", {"rho": "0.1", "on": "true"}),
        ("m,key=a=b", "m", {"key": "a=b"}),
        ("m,key=", "m", {"key": ""}),
        ("pack.mod:Class,k=1", "pack.mod:Class", {"k": "1"}),
        ("endpoint,base_url=http://[::1]:8000/v1,model=a b", "endpoint",
         {"base_url": "http://[::1]:8000/v1", "model": "a b"}),
        ("chat,template=USER: {prompt} it's", "chat", {"template": "USER: {prompt} it's"}),
        ("m,path=data (1, old)/x.tsv", "m", {"path": "data (1, old)/x.tsv"}),
        ("m,key='a, b',other=\"c\\\"d\"", "m", {"key": "a, b", "other": 'c"d'}),
        ("'odd, name.jsonl',category=a", "odd, name.jsonl", {"category": "a"}),
        ("m,list=[]", "m", {"list": ()}),
        ("m,list=[a, 'b,c' , d=e]", "m", {"list": ("a", "b,c", "d=e")}),
        ("m,list=[a,(b,c=[1,2])]", "m", {"list": ("a", Spec("b", {"c": ("1", "2")}))}),
        ("m,part=( n , k = 1 ),next=2", "m", {"part": Spec("n", {"k": "1"}), "next": "2"}),
    ],
)  # fmt: skip
def test_parse(text: str, name: str, options: dict[str, Any]) -> None:
    assert parse(text) == Spec(name, options)


def test_a_bare_text_is_told_from_a_quoted_one() -> None:
    options = parse("m,a=null,b='null'").options
    assert isinstance(options["a"], Bare)
    assert not isinstance(options["b"], Bare)


def test_numbers_truths_and_none_are_written_bare() -> None:
    options = {"a": 1, "b": 0.5, "c": True, "d": None, "e": ["x", 2], "f": "null"}
    assert write("m", options) == 'm,a=1,b=0.5,c=true,d=null,e=[x,2],f="null"'


@pytest.mark.parametrize(
    ("text", "problem", "position"),
    [
        ("", "a name is missing", 1),
        (",a=1", "a name is missing", 1),
        ("sst2,fast", "'fast' is not key=value", 10),
        ("sst2,=1", "'=1' is not key=value", 6),
        ("sst2,a=1,", "'' is not key=value", 10),
        ("sst2,a=1,a=2", "option 'a' is given twice", 11),
        ("m,a=[b", "']' is missing", 7),
        ("m,a=(b", "')' is missing", 7),
        ("m,a=[b]c", "a comma is missing", 8),
        ("m,a='b", "the quote is never closed", 5),
        ("m,a=b)", "')' closes nothing; put a text that contains it in quotes", 6),
        ("m,a=b(c", "')' is missing; put a text that contains brackets in quotes", 6),
        ("m,a=(b,c)", "'c' is not key=value", 9),
    ],
)
def test_a_spec_that_does_not_parse(text: str, problem: str, position: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == (
        f"{text!r}: {problem} (character {position}); a spec is name,key=value,key=value"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("0.4", 0.4), ("1e-3", 0.001), ("true", True), ("null", None), ("me", "me"),
        ("'1'", "1"), ("a=b,c", "a=b,c"), ("[lisa,2]", ["lisa", 2]), ("(a,b=1)", "a,b=1"), ("", ""),
    ],
)  # fmt: skip
def test_a_value_whose_type_nobody_says(text: str, value: Any) -> None:
    assert untyped(parse_value(text)) == value


def test_a_value_by_itself_ends_where_it_ends() -> None:
    with pytest.raises(UsageError, match=r"nothing may follow the value \(character 4\)"):
        parse_value("[a]b")
