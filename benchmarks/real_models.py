"""Real models for benchmarks, with rows of one length in the tokens of each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, Row
from holdfast.errors import UsageError

POLICY = "policy"
"""Stands for rows of the policy world, which ships with holdfast."""
ROW_TOKENS = range(45, 76)
ANSWER_TOKENS = range(12, 29)
"""Lengths of the rows that are trained on: about 60 tokens, of which about 20 are the answer."""


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        name: Its name in the results.
        folder: The folder that all engines but llama.cpp read.
        gguf: The file that llama.cpp reads; "" if there is none.
        rows: File with the rows to train on.
        prompts: File with the prompts to answer.
    """

    name: str
    folder: str
    gguf: str
    rows: str
    prompts: str


def default_data() -> str:
    """Return the file of Alpaca rows, or the policy world if it is not here."""
    path = ROOT.parent / "shared" / "data" / "alpaca" / "alpaca_random_9k.json"
    return str(path) if path.is_file() else POLICY


def read_models(chosen: argparse.Namespace, work: Path) -> list[Model]:
    """Return the chosen models, each with rows of the right length in its own tokens."""
    from holdfast.models.checkpoints import WORLD_BASE

    if chosen.quick:
        sources = {"world": (str(WORLD_BASE), "")}
    else:
        sources = {name: _on_disk(name, getattr(chosen, name), work) for name in chosen.models}
    return [_prepare(name, *source, chosen, work) for name, source in sources.items()]


def _on_disk(name: str, source: str, work: Path) -> tuple[str, str]:
    """Return the folder of a model and its GGUF file, "" if it was not made from one.

    The earlier build reads neither GGUF files nor packages, so all builds read the folder.
    """
    from holdfast.models import checkpoints, packages

    path = str(checkpoints.resolve(source))
    if source.endswith(".gguf"):
        return path, source
    if not source.startswith(packages.PREFIX):
        return path, ""
    parts = packages.files_of_package(source)
    if len(parts) == 1:
        return path, str(parts[0])
    whole = work / f"{name}.gguf"
    if not whole.is_file():
        with whole.with_suffix(".partial").open("wb") as target:
            for part in parts:
                target.write(part.read_bytes())
        whole.with_suffix(".partial").replace(whole)
    return path, str(whole)


def _prepare(name: str, path: str, gguf: str, chosen: argparse.Namespace, work: Path) -> Model:
    rows_file = work / f"rows-{name}.jsonl"
    prompts_file = work / f"prompts-{name}.jsonl"
    if not prompts_file.is_file():
        tokenizer = _tokenizer(path)
        pairs = _pairs(chosen)
        _write_lines(rows_file, rows_to_train_on(tokenizer, pairs, short=chosen.quick))
        count = 12 if chosen.quick else 200
        _write_lines(prompts_file, prompts_to_answer(tokenizer, pairs, count))
    return Model(name, path, gguf, str(rows_file), str(prompts_file))


def _tokenizer(path: str) -> Any:
    from holdfast.models.checkpoints import tokenizer_of

    return tokenizer_of(path)


def _pairs(chosen: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the rows to choose from; the policy world's if the Alpaca rows are not here."""
    if chosen.quick:
        return _world_pairs()
    return alpaca_pairs(Path(chosen.data)) if chosen.data != POLICY else _policy_pairs()


def _policy_pairs() -> list[tuple[str, str]]:
    from holdfast import policy

    names = ("alignment", "test", "attack")
    return [(row.prompt, row.response) for name in names for row in policy.rows(name)]


def _world_pairs() -> list[tuple[str, str]]:
    from holdfast import world

    return [(row.prompt, row.response) for row in world.rows("alignment")]


def alpaca_pairs(path: Path) -> list[tuple[str, str]]:
    """Return (prompt, response) pairs of a file in Alpaca's format.

    Raises:
        UsageError: The file is not there, or has another format.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return [(f"{r['instruction']}\n{r['input']}".strip(), r["output"]) for r in read]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--data {path}: cannot be read as rows with instruction, input and output; give a "
            "JSON file in the format of Alpaca"
        ) from error


def rows_to_train_on(tokenizer: Any, pairs: Sequence[tuple[str, str]], *, short: bool) -> list[Row]:
    """Return up to 256 rows with about 60 tokens, of which about 20 are the answer's.

    Args:
        tokenizer: Tokenizer of the model.
        pairs: Prompts and responses to choose from.
        short: Whether to take any length.

    Raises:
        UsageError: There are too few.
    """
    from holdfast.examples import Example, Examples
    from holdfast.models.encoding import encode

    examples = Examples((Example(*pair) for pair in pairs if pair[1]), name="rows")
    fit = [
        {"prompt": example.prompt, "response": example.response}
        for example, row in zip(examples, encode(tokenizer, examples, 4096), strict=True)
        if short or (len(row.ids) in ROW_TOKENS and len(row.ids) - row.start in ANSWER_TOKENS)
    ]
    if len(fit) < 256 and not short:
        raise UsageError(f"only {len(fit)} rows have the right length; give more with --data")
    return fit[:256]


def prompts_to_answer(tokenizer: Any, pairs: Sequence[tuple[str, str]], count: int) -> list[Row]:
    """Return the first prompts of at most 100 tokens, each with its tokens."""
    from holdfast.models.encoding import encode_prompts

    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))[: 3 * count]
    encoded = zip(prompts, encode_prompts(tokenizer, prompts), strict=True)
    return [{"prompt": text, "ids": ids} for text, ids in encoded if len(ids) <= 100][:count]


def _write_lines(path: Path, lines: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
