#!/usr/bin/env bash
# datasets 5.2.0 with pandas 3.1.1 and pyarrow 26.0.1
#
# Provenance of training rows is often a nested object whose keys are optional: one row has an owner,
# another a licence. The same three rows become two different data sets. Dataset.from_list() takes
# its columns from the first row, and drops a column that the first row lacks, without a warning.
# load_dataset("json") keeps it, as a feature of type Json, since the objects differ in their keys. It
# gives dictionaries when rows are read; written to Parquet it is Arrow's JSON extension type, and
# pandas reads each value back as text.
#
# One would have guessed a struct whose missing keys are null, as rows with the same keys give, from
# both loaders, and dictionaries again from Parquet.
#
# Seen:
#   from_list: columns prompt
#   load_dataset: Json, row 1 is dict
#   parquet: extension<arrow.json>, row 1 is str
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
cat > "$folder/check.py" <<'PY'
import json
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars, load_dataset

disable_progress_bars()
folder = Path(sys.argv[1])
rows = [
    {"prompt": "a"},
    {"prompt": "b", "provenance": {"owner": "x"}},
    {"prompt": "c", "provenance": {"licence": "y"}},
]
listed = Dataset.from_list(rows)
lines = folder / "rows.jsonl"
lines.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
loaded = load_dataset("json", data_files=str(lines), split="train", cache_dir=str(folder / "cache"))
loaded.to_parquet(folder / "rows.parquet")
feature = type(loaded.features["provenance"]).__name__
stored = str(pq.read_schema(folder / "rows.parquet").field("provenance").type)
read_again = pd.read_parquet(folder / "rows.parquet")["provenance"][1]
result = [
    "from_list: columns " + ", ".join(listed.column_names),
    f"load_dataset: {feature}, row 1 is {type(loaded[1]['provenance']).__name__}",
    f"parquet: {stored}, row 1 is {type(read_again).__name__}",
]
print("\n".join(result))
expected = [
    "from_list: columns prompt",
    "load_dataset: Json, row 1 is dict",
    "parquet: extension<arrow.json>, row 1 is str",
]
sys.exit(0 if result == expected else 1)
PY
"$folder/venv/bin/python" "$folder/check.py" "$folder"
