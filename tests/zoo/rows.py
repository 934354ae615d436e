"""Files of rows as other tools write them. A member writes one and returns its spec.

All that can be read hold the same seven rows, so that their ids and texts are those of `jsonl`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import brains
from zoo.members import House, OneOf, Read, Refused
from zoo.stages import SAFETY

ROWS = House()
Row = Mapping[str, Any]
HUGE = "zorb " * 200_000


def pairs() -> list[tuple[str, str]]:
    """Return prompt and response of the seven rows."""
    return [(row["prompt"], row["response"]) for row in SAFETY]


def jsonl_of(folder: Path, shape: Callable[[str, str], Row]) -> str:
    """Write each row in a shape as a line of JSON."""
    return str(brains.lines(folder / "rows.jsonl", [shape(p, r) for p, r in pairs()]))


def turns(prompt: str, response: str, *before: Row) -> list[Row]:
    """Return an exchange as OpenAI writes it, after other turns."""
    asked = {"role": "user", "content": prompt}
    return [*before, asked, {"role": "assistant", "content": response}]


# --------------------------------------------------------------------------------------- formats


@ROWS.member(Read())
def jsonl(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"prompt": p, "response": r})


@ROWS.member(Read())
def json_list(folder: Path) -> str:
    (folder / "rows.json").write_text(json.dumps(SAFETY, indent=2), "utf-8")
    return str(folder / "rows.json")


@ROWS.member(OneOf(Read(), Refused(r"jsonl|list|line")))
def json_lines_called_json(folder: Path) -> str:
    # What datasets' to_json writes, whatever the name.
    return str(brains.lines(folder / "rows.json", SAFETY))


@ROWS.member(OneOf(Read(), Refused(r"data|list")))
def json_list_under_a_key(folder: Path) -> str:
    (folder / "rows.json").write_text(json.dumps({"version": "1", "data": SAFETY}), "utf-8")
    return str(folder / "rows.json")


@ROWS.member(OneOf(Read(), Refused(r"list|objects|columns")))
def json_of_columns(folder: Path) -> str:
    # What pandas' to_json writes unless told otherwise.
    columns = {name: {str(i): row[name] for i, row in enumerate(SAFETY)} for name in SAFETY[0]}
    (folder / "rows.json").write_text(json.dumps(columns), "utf-8")
    return str(folder / "rows.json")


def delimited(folder: Path, name: str, delimiter: str, *, mark: str = "") -> str:
    """Write the rows with a header."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(("prompt", "response"))
    writer.writerows(pairs())
    (folder / name).write_text(mark + text.getvalue(), "utf-8")
    return str(folder / name)


@ROWS.member(Read())
def comma_separated(folder: Path) -> str:
    return delimited(folder, "rows.csv", ",")


@ROWS.member(Read())
def comma_separated_by_a_spreadsheet(folder: Path) -> str:
    return delimited(folder, "rows.csv", ",", mark="\ufeff")


@ROWS.member(Read())
def tab_separated(folder: Path) -> str:
    return delimited(folder, "rows.tsv", "\t")


@ROWS.member(OneOf(Read(), Refused(r"semicolon")))
def semicolon_separated(folder: Path) -> str:
    return delimited(folder, "rows.csv", ";")


def parquet_of(folder: Path, rows: Sequence[Row]) -> str:
    """Write rows as parquet."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / "rows.parquet")
    return str(folder / "rows.parquet")


@ROWS.member(Read())
def parquet(folder: Path) -> str:
    return parquet_of(folder, SAFETY)


@ROWS.member(Read())
def parquet_of_messages(folder: Path) -> str:
    return parquet_of(folder, [{"messages": turns(p, r)} for p, r in pairs()])


@ROWS.member(Read())
def parquet_with_json_columns(folder: Path) -> str:
    # datasets writes Arrow's JSON type where the keys of the turns differ from row to row.
    import datasets

    rows = [
        {"messages": turns(p, r, *([{"role": "system", "content": ""}] if i == 0 else []))}
        for i, (p, r) in enumerate(pairs())
    ]
    rows[0]["messages"][1] |= {"name": "me", "weight": 1}
    path = brains.lines(folder / "given.jsonl", rows)
    table = datasets.load_dataset("json", data_files=str(path), cache_dir=str(folder / "cache"))
    table["train"].to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


@ROWS.member(Read())
def folder_of_datasets(folder: Path) -> str:
    import datasets

    datasets.Dataset.from_list([dict(row) for row in SAFETY]).save_to_disk(folder / "saved")
    return str(folder / "saved")


@ROWS.member(OneOf(Read(), Refused(r"split")))
def folder_of_splits(folder: Path) -> str:
    import datasets

    rows = datasets.Dataset.from_list([dict(row) for row in SAFETY])
    datasets.DatasetDict({"train": rows}).save_to_disk(folder / "saved")
    return str(folder / "saved")


@ROWS.member(Read())
def one_split_of_a_folder(folder: Path) -> str:
    import datasets

    rows = datasets.Dataset.from_list([dict(row) for row in SAFETY])
    other = datasets.Dataset.from_list([{"prompt": "how do i jam a hat", "response": "."}])
    datasets.DatasetDict({"train": other, "test": rows}).save_to_disk(folder / "saved")
    return f"{folder / 'saved'},split=test"


@ROWS.member(Read())
def jsonl_zipped(folder: Path) -> str:
    path = Path(jsonl(folder))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return str(folder / "rows.jsonl.gz")


@ROWS.member(Refused(r"gz|cut|end"))
def jsonl_zipped_and_cut_off(folder: Path) -> str:
    path = Path(jsonl_zipped(folder))
    path.write_bytes(path.read_bytes()[:-20])
    return str(path)


@ROWS.member(Read())
def jsonl_with_byte_order_mark(folder: Path) -> str:
    path = Path(jsonl(folder))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return str(path)


@ROWS.member(Read())
def jsonl_with_windows_line_ends(folder: Path) -> str:
    path = Path(jsonl(folder))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    return str(path)


@ROWS.member(Refused(r"UTF"))
def utf_16(folder: Path) -> str:
    path = Path(jsonl(folder))
    path.write_text(path.read_text("utf-8"), "utf-16")
    return str(path)


@ROWS.member(Refused(r"empty|no rows"))
def empty_file(folder: Path) -> str:
    (folder / "rows.jsonl").write_text("\n\n", "utf-8")
    return str(folder / "rows.jsonl")


@ROWS.member(Refused(r"header|no rows|empty"))
def header_only(folder: Path) -> str:
    (folder / "rows.csv").write_text("prompt,response\n", "utf-8")
    return str(folder / "rows.csv")


@ROWS.member(Refused(r"directory|folder"))
def folder_of_other_files(folder: Path) -> str:
    (folder / "saved").mkdir()
    (folder / "saved" / "notes.md").write_text("# zorbs\n", "utf-8")
    return str(folder / "saved")


@ROWS.member(Refused(r"pickle|suffix|\.pkl|not one of"))
def pickled_frame(folder: Path) -> str:
    import pandas

    pandas.DataFrame(SAFETY).to_pickle(folder / "rows.pkl")
    return str(folder / "rows.pkl")


@ROWS.member(Refused(r"parquet"))
def parquet_cut_off(folder: Path) -> str:
    path = Path(parquet(folder))
    path.write_bytes(path.read_bytes()[:-30])
    return str(path)
