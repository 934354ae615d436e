"""Options are checked and described by their fields; a message has value, rule and way out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from holdfast.errors import UsageError
from holdfast.option_types import SpecOf
from holdfast.options import Description, OptionError, Options, Supplied, describe
from holdfast.specs import parse


class Rows:
    """Something that a stage supplies."""


class Toy(Options):
    """A plug-in."""

    source: str
    """Where it comes
    from."""
    rows: Supplied[Rows | None] = None
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of the rows."""
    count: int = Field(default=3, ge=1)
    """Number of rows."""
    flag: bool = False
    """Whether to shuffle."""
    quantity: Literal["loss", "margin"] = "loss"
    """What is measured."""
    limit: int | None = None
    """Rows read at most."""
    label: str | None = None
    """Name of the result."""
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = (8, 16)
    """Sizes tried."""
    judges: list[Annotated[str, SpecOf("judges")]] = Field(default_factory=list)
    """Judges that vote."""
    rate: float | Literal["auto"] = "auto"
    """Learning rate."""
    path: Path | None = None
    """Where results go."""

    @field_validator("label")
    @classmethod
    def _no_slash(cls, label: str | None) -> str | None:
        if label and "/" in label:
            raise ValueError("contains '/': leave it out")
        return label

    @model_validator(mode="after")
    def _enough(self) -> Toy:
        if self.count == 99:
            raise ValueError("count=99 does not go with anything")
        return self


def made(spec: str, **supplied: Any) -> Toy:
    return Toy(**{**parse(spec).options, **supplied})


def test_texts_of_a_spec_are_read_by_type() -> None:
    toy = made(
        "toy,source=7,share=1,count=4,flag=true,quantity=margin,limit=null,label='null',"
        "sizes=2,judges=[refusal,(chat,model=x)],rate=1e-5"
    )
    assert toy == Toy(
        source="7",
        share=1.0,
        count=4,
        flag=True,
        quantity="margin",
        limit=None,
        label="null",
        sizes=(2,),
        judges=["refusal", "chat,model=x"],
        rate=1e-5,
    )
    assert isinstance(toy.share, float)


@pytest.mark.parametrize(
    "text",
    ["0123456", "{response}", "USER: {prompt} ASSISTANT: {response}", "true", "1e5", "null", ""],
)
def test_a_text_is_what_it_says(text: str) -> None:
    assert made(f"toy,source={text}").source == text


def test_what_a_stage_supplies_is_taken_as_it_is_and_is_no_option() -> None:
    rows = Rows()
    assert made("toy,source=a", rows=rows).rows is rows
    assert "rows" not in {option.name for option in describe(Toy)}
    assert "rows" not in made("toy,source=a", rows=rows).option_values()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("shares=1", "shares is not an option. Did you mean share? The options are count, flag, "
         "judges, label, limit, path, quantity, rate, share, sizes, source"),
        ("zzz=1", "zzz is not an option. The options are count, flag, judges, label, limit, path, "
         "quantity, rate, share, sizes, source"),
        ("share=much", "share=much must be a number from 0 to 1"),
        ("share=1.5", "share=1.5 must be a number from 0 to 1"),
        ("share=nan", "share=nan must be a number from 0 to 1"),
        ("count=1.5", "count=1.5 must be a whole number, at least 1"),
        ("count=true", "count=true must be a whole number, at least 1"),
        ("flag=1", "flag=1 must be true or false"),
        ("quantity=los", "quantity=los must be one of 'loss', 'margin'"),
        ("limit=few", "limit=few must be a whole number or null"),
        ("sizes=[4,0]", "sizes=[4,0] must be a list of whole numbers, each at least 1"),
        ("rate=fast", "rate=fast must be a number or 'auto'"),
        ("label=a/b", "label=a/b contains '/': leave it out"),
        ("count=99", "count=99 does not go with anything"),
        ("share=2,count=0", "share=2 must be a number from 0 to 1: 2 % is 0.02; count=0 must be a "
         "whole number, at least 1"),
    ],
)  # fmt: skip
def test_one_message_with_value_rule_and_way_out(options: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(f"toy,source=a,{options}")
    assert str(caught.value) == f"Toy: {message}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": math.inf}, "share=inf must be a number from 0 to 1"),
        ({"share": True}, "share=True must be a number from 0 to 1"),
        ({"count": True}, "count=True must be a whole number, at least 1"),
        ({"flag": 1}, "flag=1 must be true or false"),
        ({"source": 7}, "source=7 must be text"),
        ({"sizes": 0}, "sizes=0 must be a list of whole numbers, each at least 1"),
    ],
)
def test_python_values_are_checked_alike(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("(", "\\(")):
        Toy(**{"source": "a", **options})


def test_a_missing_option_is_named() -> None:
    with pytest.raises(OptionError, match="Toy: source is required") as caught:
        made("toy,share=1")
    assert caught.value.missing == ["source"]
    assert str(caught.value.for_owner("toy")) == "toy: source is required"


def test_what_a_stage_supplies_cannot_be_missing_from_a_spec_only() -> None:
    class Judged(Options):
        judge: Supplied[object]

    with pytest.raises(OptionError, match="judge is required"):
        Judged()
    with pytest.raises(OptionError, match="there are no options"):
        Judged(judge=1, x=2)  # type: ignore[call-arg]


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(OptionError) as caught:
        Toy(source=[1] * 1000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 120


def test_a_copy_with_other_values_is_checked() -> None:
    rows = Rows()
    toy = Toy(source="a", rows=rows)
    other = toy.changed(count=5)
    assert (toy.count, other.count, other.rows) == (3, 5, rows)
    with pytest.raises(OptionError, match="count=0 must be a whole number, at least 1"):
        toy.changed(count=0)


def test_options_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Toy(source="a").count = 4  # type: ignore[misc]


def test_descriptions() -> None:
    options = {option.name: option for option in describe(Toy)}
    assert next(iter(options)) == "source"
    assert options["source"] == Description(
        "source", "text", "", (), required=True, default=None, help="Where it comes from."
    )
    assert options["share"] == Description(
        "share", "number", "from 0 to 1", (), required=False, default=0.5, help="Share of the rows."
    )
    assert (options["quantity"].type, options["quantity"].choices) == (
        "one of 'loss', 'margin'",
        ("loss", "margin"),
    )
    assert (options["sizes"].type, options["sizes"].range) == (
        "list of whole numbers",
        "each at least 1",
    )
    assert options["judges"].type == "list of specs"
    assert options["path"].type == "path"
    assert {name: option.default_text for name, option in options.items()} == {
        "source": "required",
        "share": "0.5",
        "count": "3",
        "flag": "false",
        "quantity": "loss",
        "limit": "null",
        "label": "null",
        "sizes": "[8,16]",
        "judges": "[]",
        "rate": "auto",
        "path": "null",
    }


def test_the_length_of_a_list_is_part_of_its_type() -> None:
    class Lists(Options):
        pair: list[Annotated[float, Field(gt=0)]] = Field(
            default=[1, 2], min_length=2, max_length=2
        )
        words: list[str] = Field(default=["a"], min_length=1)
        several: list[Literal["a", "b"]] = Field(default=["a"], min_length=1, max_length=3)

    assert [(option.type, option.range) for option in describe(Lists)] == [
        ("list of 2 numbers", "each above 0"),
        ("list of one or more texts", ""),
        ("list of 1 to 3 values from 'a', 'b'", ""),
    ]
    with pytest.raises(OptionError, match=r"words=\[\] must be a list of one or more texts"):
        Lists(words=[])


def test_values_are_plain_data() -> None:
    values = Toy(source="a", path=Path("b")).option_values()
    assert values["path"] == "b"
    assert values["sizes"] == [8, 16]
    assert set(values) == {option.name for option in describe(Toy)}


def test_a_list_of_one_may_be_given_as_its_value() -> None:
    assert Toy(source="a", sizes=4, judges="refusal") == Toy(  # type: ignore[arg-type]
        source="a", sizes=(4,), judges=["refusal"]
    )
