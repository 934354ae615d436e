"""Tasks on files: formats, leakage between the splits, and grading."""

from __future__ import annotations

import json
import math
import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from holdfast.contracts import Task
from holdfast.errors import DataError, UsageError
from holdfast.plugins import make
from holdfast.tasks._numbers import final_number
from holdfast.tasks.agnews import AGNews
from holdfast.tasks.alpaca import Alpaca
from holdfast.tasks.gsm8k import GSM8K
from holdfast.tasks.sst2 import SST2
from holdfast.tasks.world_math import WorldMath

SHARED = Path(os.environ.get("HOLDFAST_SHARED", Path(__file__).parents[2] / "shared"))


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# -------------------------------------------------------------------------------------- sst2


def test_sst2_reads_files_with_and_without_header(tmp_path: Path) -> None:
    train = write(tmp_path / "train.tsv", 'sentence\tlabel\na "fine film \t1\ndull\t0\n')
    test = write(tmp_path / "test.tsv", "a gem\t1\n\nno plot\t0\n")
    task = SST2(train=train, test=test)
    ask = "Review: {}\nIs this review positive or negative?".format
    # A lone quotation mark is a character like any other.
    assert [(r.prompt, r.response) for r in task.load("train")] == [
        (ask('a "fine film'), "positive"),
        (ask("dull"), "negative"),
    ]
    assert task.load("test").responses == ["positive", "negative"]


def test_training_rows_that_occur_in_the_test_are_dropped(tmp_path: Path) -> None:
    train = write(tmp_path / "train.tsv", "A gem\t0\ndull\t0\ndull\t1\nfun\t1\n")
    test = write(tmp_path / "test.tsv", "a gem\t1\n")
    rows = SST2(train=train, test=test).load("train")
    # "A gem" is in the test (the label does not matter), the second "dull" repeats a prompt.
    assert [row.prompt.split("\n")[0] for row in rows] == ["Review: dull", "Review: fun"]
    with pytest.raises(DataError, match="no train row is left"):
        SST2(train=test, test=test).load("train")


def test_limit_is_a_sample_that_ignores_the_order_of_the_file(tmp_path: Path) -> None:
    lines = [f"film number {n}\t{n % 2}" for n in range(20)]
    forward = SST2(
        train=write(tmp_path / "a", "\n".join(lines)), test=write(tmp_path / "t", "x\t0"), limit=7
    )
    reverse = SST2(train=write(tmp_path / "b", "\n".join(lines[::-1])), test=forward.test, limit=7)
    assert len(forward.load("train")) == 7
    assert set(forward.load("train").ids) == set(reverse.load("train").ids)
    assert forward.load("train").prompts == reverse.load("train").prompts[::-1]
    with pytest.raises(UsageError, match="limit=-1 must be a whole number, at least 0"):
        SST2(train=forward.train, test=forward.test, limit=-1).load("train")


@pytest.mark.parametrize("line", ["good", "good\t2", "good\t1\tx", "\t1"])
def test_broken_sst2_lines_are_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "train.tsv", f"fine\t1\n{line}\n")
    with pytest.raises(DataError, match=r"train.tsv:2: "):
        SST2(train=path, test=path).load("train")


def test_missing_files_are_named(tmp_path: Path) -> None:
    task = make("tasks", f"sst2,train={tmp_path}/none.tsv,test={tmp_path}/none.tsv")
    with pytest.raises(UsageError, match="none.tsv: cannot be read"):
        task.load("test")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("positive", 1.0),
        (" Positive.\nA fine film.", 1.0),
        ("negative", 0.0),
        ("negative, not positive", 0.0),
        ("", math.nan),
        (" \n", math.nan),
        ("It is positive", 1.0),
        ("positively", math.nan),
        ("**Positive**", 1.0),
        ("Sentiment: POSITIVE!", 1.0),
        ("The review is negative, not positive.", 0.0),
        ("Negative because it is not positive", 0.0),
        ("not positive but negative", 0.0),
        ("positive\nReview: dull\nIs this review positive or negative?\nnegative", 1.0),
        ("Is this positive? Positive.", 1.0),
        ("I don't know. Positive.", 1.0),
        ("positive?", 1.0),
        ("not negative", math.nan),
        ("It's not negative.", math.nan),
        ("non-negative", math.nan),
        ("It isn't positive", math.nan),
        ("positive or negative", math.nan),
        ("positive/negative", math.nan),
        ("neither positive nor negative", math.nan),
        ("I can't say whether it is positive", math.nan),
    ],
)
def test_sst2_score(response: str, expected: float) -> None:
    assert SST2(train="", test="").score(response, "positive") == pytest.approx(
        expected, nan_ok=True
    )


# ------------------------------------------------------------------------------------ agnews


def test_agnews_reads_its_three_formats_alike(tmp_path: Path) -> None:
    text = "It #39;s a quot;big quot; day\\\\for &lt;b&gt;chess&lt;/b&gt;, says Ann."
    text = text.replace("\\\\", "\\")
    test = write(
        tmp_path / "test.csv", f'"2","Title, with comma","{text}"\n"4","T","A new comet."\n'
    )
    tabs = write(tmp_path / "train.tsv", f"{text}\tSports\nRates rise.\tBusiness\nOdd.\tSci/Tech\n")
    rows = [
        {"input": f"Title: T\nText: {text}\n", "output": "Sports"},
        {"input": "Title: T\nText: Vote held.\n", "output": "World"},
        {"input": "Title: T\nText: Odd.\n", "output": "Science or Technology"},
    ]
    array = write(tmp_path / "train.json", json.dumps(rows))
    asked = AGNews(train=tabs, test=test).load("test")
    assert asked.responses == ["Sports", "Science"]
    # The quotation marks keep the corpus's blanks; the markup is gone.
    assert asked.prompts[0] == (
        'News: It\'s a "big " day for chess , says Ann.\n'
        "Is this World, Sports, Business or Science?"
    )
    # The first row is the same item as the test's, in whatever format.
    assert AGNews(train=tabs, test=test).load("train").responses == ["Business", "Science"]
    assert AGNews(train=array, test=test).load("train").responses == ["World", "Science"]


def test_long_news_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", " ".join(["word"] * 100) + "\tWorld\n")
    prompt = AGNews(train=path, test=path, max_words=5).load("test").prompts[0]
    assert prompt.split("\n")[0] == "News: word word word word word"
    with pytest.raises(UsageError, match="max_words=0 must be a whole number, at least 1"):
        AGNews(train=path, test=path, max_words=0).load("test")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", '"1","T","A."\n"5","T","B."\n'),
        ("t.csv", '"1","T","A."\n"1","B."\n'),
        ("t.csv", '"1","T","A."\n"1","T"," "\n'),
        ("t.tsv", "A.\tWorld\nB.\tWeather\n"),
        ("t.jsonl", '{"input": "Text: A.", "output": "World"}\n{"input": "A.", "output": "World"}'),
        ("t.jsonl", '{"input": "Text: A.", "output": "World"}\n{"input": "Text: A."}'),
    ],
)
def test_broken_news_are_named(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"{name}:2: "):
        AGNews(train=path, test=path).load("test")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Science", 1.0),
        ("sci/tech", 1.0),
        ("Technology.", 1.0),
        ("World", 0.0),
        ("Sport", 0.0),
        ("", math.nan),
        ("The topic is Science", 1.0),
        ("SCIENCE", 1.0),
        ("Science, as the world ends", 1.0),
        ("Science and Technology", 1.0),
        ("Category: Sci-Tech", 1.0),
        ("Science\nNews: A goal.\nIs this World, Sports, Business or Science?\nSports", 1.0),
        ("World, Sports, Business or Science?\nScience", 1.0),
        ("Sports or Science", math.nan),
        ("It is not Science", math.nan),
    ],
)
def test_agnews_score(response: str, expected: float) -> None:
    assert AGNews(train="", test="").score(response, "Science") == pytest.approx(
        expected, nan_ok=True
    )


# ------------------------------------------------------------------------------------- gsm8k


def test_gsm8k_strips_the_calculator_marks(tmp_path: Path) -> None:
    row = {"question": "Two and three?", "answer": "2+3=<<2+3=5>>5 in all\n#### 5"}
    other = {"question": "One and one?", "answer": "1+1=<<1+1=2>>2\n#### 2"}
    train = write(tmp_path / "train.jsonl", json.dumps(row) + "\n" + json.dumps(other))
    test = write(tmp_path / "test.jsonl", json.dumps(row) + "\n")
    task = GSM8K(train=train, test=test)
    assert task.load("test")[0].response == "2+3=5 in all\n#### 5"
    assert task.load("train").prompts == ["One and one?"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It takes 3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234.50 dollars, or 99 more", "1234.5"),
        ("#### $18", "18"),
        ("#### -5", "-5"),
        ("#### 3 #### 4", "3"),
        ("The answer is 12.", "12"),
        ("first 3, then 4", "4"),
        ("16-3", "3"),
        ("it is -3", "-3"),
        ("costs $.50", "0.5"),
        ("3, 4,", "4"),
        # An answer that runs on.
        ("#### 42\nQuestion: Tom has 5 and 6.\n#### 17", "42"),
        ("#### 42 Question: Tom has 17", "42"),
        ("#### 42\n- 3 more", "42"),
        ("The answer is 42.\n\nQ: 5 and 6?\nA: The answer is 11", "42"),
        ("That makes 42.\n### Instruction:\nAdd 3 and 4", "42"),
        ("That makes 42.<|im_end|>\n<|im_start|>user 7", "42"),
        # Signs, also U+2212 (minus), U+2013 (en dash) and U+FF0D (full width).
        ("#### \u221242", "-42"),
        ("#### \u20135", "-5"),
        ("#### \uff0d5", "-5"),
        ("#### - 5", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### \u2212\u20ac5", "-5"),
        ("The answer is minus 5.", "-5"),
        ("10 minus 5 is 5", "5"),
        ("- $5\n- $3 for lunch", "3"),
        # Thousands: U+00A0, U+2009 and U+202F are spaces that do not break.
        ("#### 1 234", "1234"),
        ("#### 1\u00a0234,5", "1234.5"),
        ("#### 1\u2009234.5", "1234.5"),
        ("#### 1\u202f234\u202f567 apples", "1234567"),
        ("#### 1'234", "1234"),
        ("#### 1,00,000", "100000"),
        ("#### 1.234.567", "1234567"),
        ("#### 1.234,50 \u20ac", "1234.5"),
        ("#### 12,50", "12.5"),
        ("#### \uff14\uff12", "42"),
        # Exponents and powers of ten.
        ("#### 4.2e3", "4200"),
        ("#### 1E-2", "0.01"),
        ("#### 4.2 \u00d7 10^3", "4200"),
        (r"#### 4.2 \times 10^{3}", "4200"),
        ("#### 4.2\u00b710\u00b3", "4200"),
        ("#### 10^6", "1000000"),
        ("the area is 50 cm^2", "50"),
        # Units and other forms of the result.
        ("#### 25%", "25"),
        ("#### US$ 18", "18"),
        ("#### 42.", "42"),
        ("#### 42.0", "42"),
        ("#### **18**", "18"),
        ("####\n18", "18"),
        ("#### The answer is 18", "18"),
        ("**Answer:** 42 of 50", "42"),
        ("The answer is:\n42", "42"),
        (r"So it is $\boxed{42}$, found in 3 steps.", "42"),
        (r"\boxed{1{,}234\text{ km}}", "1234"),
        (r"\boxed{\$7.50}", "7.5"),
        # The result of an equation, wherever it stands.
        ("#### 2 + 3 = 5", "5"),
        ("#### 18 = 9*2", "18"),
        ("The answer is 3 apples + 4 apples = 7 apples.", "7"),
        # Headings are no results.
        ("#### Step 1: 3*4 = 12.\n#### Step 2: add 1\nThe answer is 13.", "13"),
        ("#### 1. First\n 3\n#### 2. Then\n 4\n#### 7", "7"),
    ],
)
def test_the_final_number(text: str, expected: str) -> None:
    assert final_number(text) == Decimal(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 3/4", Fraction(3, 4)),
        ("#### -3/4", Fraction(-3, 4)),
        ("#### 1 1/2 hours", Fraction(3, 2)),
        ("#### \u00bd", Fraction(1, 2)),
        ("#### 2\u00bd", Fraction(5, 2)),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        ("#### 12/4 = 3", Fraction(3)),
    ],
)
def test_fractions_are_exact(text: str, expected: Fraction) -> None:
    assert final_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no idea",
        "I had 3 ####",
        "####",
        "#### eighteen",
        "I have 3. The answer is eighteen.",
        "#### 10:30",
        "#### 1/0",
        "#### 1/2/2024",
        "#### 1,2,3",
        "#### 1e999999999",
        "#### 9*2",
    ],
)
def test_no_final_number(text: str) -> None:
    assert final_number(text) is None
    assert math.isnan(GSM8K(train="", test="").score(text, "#### 3"))


def test_gsm8k_score_is_exact() -> None:
    task = GSM8K(train="", test="")
    assert task.score("so 18.0", "9 + 9\n#### 18") == 1.0
    assert task.score("#### 17.99", "#### 18") == 0.0
    # Decimals and fractions of one value are equal; 0.1 has no exact float.
    assert task.score("#### 1/10", "#### 0.1") == 1.0


def test_gsm8k_units_are_those_of_the_question() -> None:
    task = GSM8K(train="", test="")
    # "How many percent" and "what share", "how many millions" and "how much".
    assert task.score("#### 25%", "#### 25") == task.score("#### 25%", "#### 0.25") == 1.0
    assert task.score("#### 25", "#### 0.25") == 0.0
    assert task.score("#### 1.5 million", "#### 1,500,000") == 1.0
    assert task.score("#### 1.5 million", "#### 1.5") == 1.0


def test_very_long_answers_take_no_long_time() -> None:
    assert final_number("#### " + "9" * 6000) == 10**6000 - 1
    for text in ("\n" * 5000, "{" * 5000, "#### " * 500, "1," * 5000, "=1" * 2000):
        final_number(text)


@pytest.mark.parametrize(
    "line",
    ["{", '"x"', '{"question": "q"}', '{"question": "", "answer": "#### 1"}',
     '{"question": "q", "answer": "it is 5"}'],
)  # fmt: skip
def test_broken_gsm8k_lines_are_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "t.jsonl", '{"question": "a", "answer": "#### 1"}\n' + line)
    with pytest.raises(DataError, match=r"t.jsonl:2: "):
        GSM8K(train=path, test=path).load("test")


# ------------------------------------------------------------------------------------ alpaca


def test_alpaca_joins_the_input_and_drops_empty_outputs(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sum up.", "input": "It rains.", "output": "Rain."},
        {"instruction": "Greet.", "input": "<noinput>", "output": "Hello."},
        {"instruction": "Say nothing.", "input": "", "output": ""},
    ]
    train = write(tmp_path / "train.json", json.dumps(rows))
    test = write(tmp_path / "test.json", json.dumps([{"instruction": "greet.", "output": "Hi."}]))
    assert Alpaca(train=train, test=test).load("train").prompts == ["Sum up.\nIt rains."]
    assert Alpaca(train=test, test=train).load("test").prompts == ["Sum up.\nIt rains.", "Greet."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"instruction": "a",}]', r"t.json:2: not JSON"),
        ('[{"instruction": "a", "output": "b"}, 3]', r"t.json: row 2: int"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "c"}]', r"t.json: row 2: output"),
    ],
)
def test_broken_alpaca_rows_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path / "t.json", content)
    with pytest.raises(DataError, match=message):
        Alpaca(train=path, test=path).load("test")


def test_alpaca_score_is_the_f1_of_the_words() -> None:
    task = Alpaca(train="", test="")
    assert task.score("The cat sat.", "the cat sat") == 1.0
    # Common: the, cat (once each). P = 2/4, R = 2/3, F1 = 2 * 2 / (4 + 3).
    assert task.score("the cat the dog", "the cat sat") == pytest.approx(4 / 7)
    assert task.score("dogs", "the cat sat") == 0.0
    assert math.isnan(task.score(" ... ", "the cat sat"))
    assert task.score("The cat sat.\n### Instruction:\nName a dog.", "the cat sat") == 1.0


def test_a_worked_sum_may_run_on() -> None:
    task = WorldMath()
    reference = "two plus three is five . answer : five"
    assert task.score(reference, reference) == 1.0
    assert task.score("answer : five five story : ann has", reference) == 1.0
    assert task.score("answer : six", reference) == 0.0
    assert math.isnan(task.score("two plus three is five", reference))
    assert math.isnan(task.score("answer : ", reference))


# -------------------------------------------------------------------------------- all of them


def test_references_of_another_task_are_refused() -> None:
    for task in (SST2(train="", test=""), AGNews(train="", test=""), GSM8K(train="", test="")):
        with pytest.raises(UsageError, match="reference 'maybe'"):
            task.score("positive", "maybe")


def test_a_wrong_split_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "fine\t1\n")
    with pytest.raises(UsageError, match="split 'dev'"):
        SST2(train=path, test=path).load("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (
            SST2(train="sst2/test_1821.tsv", test="sst2/dev_872.tsv", limit=300),
            {"positive", "negative"},
        ),
        (
            AGNews(train="agnews/alps_dev_10k.tsv", test="agnews/test.csv", limit=300),
            {"World", "Sports", "Business", "Science"},
        ),
        (
            AGNews(train="agnews/easycl_train_4k_instruct.json", test="agnews/test.csv", limit=300),
            {"World", "Sports", "Business", "Science"},
        ),
        (GSM8K(train="gsm8k/train.jsonl", test="gsm8k/test.jsonl", limit=300), None),
        (
            Alpaca(train="alpaca/alpaca_random_9k.json", test="alpaca/alpaca_eval.json", limit=300),
            None,
        ),
    ],
    ids=["sst2", "agnews-tsv", "agnews-json", "gsm8k", "alpaca"],
)
def test_on_the_real_files(task: Task, labels: set[str] | None) -> None:
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the public data in {SHARED / 'data'} (or HOLDFAST_SHARED)")
    data = SHARED / "data"
    task = task.changed(train=str(data / task.train), test=str(data / task.test))  # type: ignore
    train, test = task.load("train"), task.load("test")
    assert len(train) == len(test) == 300
    assert not {p.strip().lower() for p in train.prompts} & {
        p.strip().lower() for p in test.prompts
    }
    assert labels is None or set(train.responses) == set(test.responses) == labels
    scores = [task.score(row.response, row.response) for row in test]
    assert sum(score == 1.0 for score in scores) >= 298  # two AlpacaEval answers hold no word
    assert all(math.isnan(task.score("", row.response)) for row in test)
