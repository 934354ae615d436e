"""Tasks on files: formats, leakage between the splits, and grading."""

from __future__ import annotations

import json
import math
import os
from decimal import Decimal
from pathlib import Path

import pytest

from holdfast.contracts import Task
from holdfast.errors import DataError, UsageError
from holdfast.plugins import make
from holdfast.tasks.agnews import AGNews
from holdfast.tasks.alpaca import Alpaca
from holdfast.tasks.gsm8k import GSM8K, final_number
from holdfast.tasks.sst2 import SST2

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
        ("It is positive", math.nan),
        ("positively", math.nan),
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
        ("The topic is Science", math.nan),
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
        ("#### 3 #### 4", "4"),
        ("The answer is 12.", "12"),
        ("first 3, then 4", "4"),
        ("16-3", "3"),
        ("it is -3", "-3"),
        ("costs $.50", "0.5"),
        ("3, 4,", "4"),
    ],
)
def test_the_final_number(text: str, expected: str) -> None:
    assert final_number(text) == Decimal(expected)


@pytest.mark.parametrize("text", ["", "no idea", "I had 3 ####", "####"])
def test_no_final_number(text: str) -> None:
    assert final_number(text) is None
    assert math.isnan(GSM8K(train="", test="").score(text, "#### 3"))


def test_gsm8k_score_is_exact() -> None:
    task = GSM8K(train="", test="")
    assert task.score("so 18.0", "9 + 9\n#### 18") == 1.0
    assert task.score("#### 17.99", "#### 18") == 0.0


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
