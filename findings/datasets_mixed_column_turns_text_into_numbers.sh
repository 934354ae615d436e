#!/usr/bin/env bash
# datasets 5.2.0 with pandas 3.1.1 and pyarrow 26.0.1
#
# A column of responses is text, except that one row of the JSONL file holds a number: 7 without
# quotes, as exports of arithmetic tasks do. load_dataset("json") makes the column of type Json, since
# the types are mixed (on_mixed_types="use_json", its default). A text that happens to be valid JSON is
# then taken for JSON already: the text "1" comes back as the number 1, "007" as 7, "true" as True,
# "null" as None, and an answer that is a tool call as a dictionary. Other texts stay text. map() does
# the same, and so does Dataset.from_list(on_mixed_types="use_json"). There is no warning. Without the
# one number in the file every text comes back as it was.
#
# One would have guessed that Json keeps a text a text, as quotes do in the file, and that one row
# cannot change the type of the others. The docstrings show mixed columns only with texts that are not
# valid JSON; no report of this was found.
#
# Seen:
#   written: '42', '007', 'true', 'null', '{"tool": "search"}', 'plain'
#   texts only: '42', '007', 'true', 'null', '{"tool": "search"}', 'plain'
#   with a number: 42, 7, True, None, {'tool': 'search'}, 'plain'
#   from_list, use_json: 42, 7, True, None, {'tool': 'search'}, 'plain'
#   map: 42, 7, True, None, {'tool': 'search'}, 'plain'
#   warnings: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
cat > "$folder/check.py" <<'PY'
import json
import sys
import warnings
from pathlib import Path

from datasets import Dataset, disable_progress_bars, load_dataset

disable_progress_bars()
folder = Path(sys.argv[1])
texts = ["42", "007", "true", "null", '{"tool": "search"}', "plain"]
with_number = [*texts, 7]


def load(name, responses):
    lines = folder / f"{name}.jsonl"
    rows = [json.dumps({"response": response}) for response in responses]
    lines.write_text("\n".join(rows), encoding="utf-8")
    return load_dataset(
        "json", data_files=str(lines), split="train", cache_dir=str(folder / "cache")
    )


def describe(dataset):
    responses = [dataset[i]["response"] for i in range(len(texts))]
    return ", ".join(repr(response) for response in responses)


with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    alone = load("texts", texts)
    mixed = load("mixed", with_number)
    listed = Dataset.from_list([{"response": r} for r in with_number], on_mixed_types="use_json")
    numbered = Dataset.from_dict({"row": list(range(len(with_number)))})
    mapped = numbered.map(lambda row: {"response": with_number[row["row"]]})
written = ", ".join(repr(text) for text in texts)
changed = "42, 7, True, None, {'tool': 'search'}, 'plain'"
result = [
    f"written: {written}",
    f"texts only: {describe(alone)}",
    f"with a number: {describe(mixed)}",
    f"from_list, use_json: {describe(listed)}",
    f"map: {describe(mapped)}",
    f"warnings: {len(seen)}",
]
print("\n".join(result))
expected = [
    f"written: {written}",
    f"texts only: {written}",
    f"with a number: {changed}",
    f"from_list, use_json: {changed}",
    f"map: {changed}",
    "warnings: 0",
]
sys.exit(0 if result == expected else 1)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/check.py" "$folder"
