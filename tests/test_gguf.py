"""GGUF files and packages as models: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from typer.testing import CliRunner

from gguf_models import (
    END,
    HEADS,
    KEY_HEADS,
    TEXT,
    TURN,
    gguf_tensors,
    interleaved,
    tiny_llama,
    vocabulary,
    write_gguf,
)
from holdfast.cli import app
from holdfast.errors import UsageError
from holdfast.models import checkpoints, imports
from holdfast.models.endings import stop_tokens
from holdfast.models.import_model import import_model

TOKENS = torch.tensor([[1, 70, 71, 2, 90, 40, 33, 7, 270, 101]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(imports.CACHE, str(folder))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


# ------------------------------------------------------------------------------ the weights


def test_a_float_file_gives_the_very_model_it_was_made_from(tmp_path: Path) -> None:
    model = tiny_llama()
    loaded = checkpoints.load(str(write_gguf(tmp_path / "a.gguf", model)))
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.model.dtype == torch.float32
    assert all(weight.requires_grad for weight in loaded.model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1])
def test_every_weight_is_what_gguf_itself_dequantizes(
    tmp_path: Path, kind: Kind, tied: bool
) -> None:
    model = tiny_llama(tied=tied)
    path = write_gguf(tmp_path / "a.gguf", model, kind=kind)
    ours = gguf_tensors(checkpoints.load(str(path)).model)
    stored = gguf.GGUFReader(path).tensors
    assert {tensor.name for tensor in stored} == set(ours)
    for tensor in stored:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours[tensor.name], expected, err_msg=tensor.name)


def test_the_order_of_rows_in_the_tests_is_llama_cpps() -> None:
    """The converter: reshape(heads, 2, half, width), swap the middle axes, reshape back."""
    weight = np.arange(16 * 3).reshape(16, 3)
    for heads in (HEADS, KEY_HEADS):
        half = 16 // heads // 2
        expected = weight.reshape(heads, 2, half, 3).swapaxes(1, 2).reshape(16, 3)
        np.testing.assert_array_equal(interleaved(weight, heads), expected)


def test_saving_and_loading_again_keeps_every_bit(tmp_path: Path) -> None:
    loaded = checkpoints.load(str(write_gguf(tmp_path / "a.gguf", kind=Kind.Q4_0)))
    checkpoints.save(loaded.model, loaded.tokenizer, tmp_path / "saved")
    again = checkpoints.load(str(tmp_path / "saved"))
    assert torch.equal(logits(again.model), logits(loaded.model))


# -------------------------------------------------------------------------- tokenizer and ends


def test_end_tokens_are_those_of_the_file_and_of_its_template(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    loaded = checkpoints.load(str(path))
    assert stop_tokens(loaded.model, loaded.tokenizer) == sorted([TEXT, TURN, END])
    folder = checkpoints.resolve(str(path))
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == sorted([TEXT, TURN, END])
    assert loaded.tokenizer.chat_template is not None


def test_digits_are_split_from_the_blanks_before_them_as_the_vocabulary_asks(
    tmp_path: Path,
) -> None:
    """GPT-2 leaves the last blank to the number; SmolLM2 and StarCoder cut before every digit."""
    tokens = vocabulary()[0]
    blank = tokens[next(i for i, token in enumerate(tokens) if token == "\u0120")]
    two = tokens.index(blank + blank)
    for split, expected in (
        ("gpt-2", [tokens.index(blank), tokens.index(blank), tokens.index("1")]),
        ("smollm", [two, tokens.index("1")]),
        ("starcoder", [two, tokens.index("1")]),
    ):
        path = write_gguf(tmp_path / f"{split}.gguf", settings={"tokenizer.ggml.pre": split})
        tokenizer = checkpoints.tokenizer_of(str(path))
        assert tokenizer("  1", add_special_tokens=False)["input_ids"] == expected, split


def test_a_file_without_a_chat_template_is_a_base_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", settings={"tokenizer.chat_template": None})
    loaded = checkpoints.load(str(path))
    assert loaded.tokenizer.chat_template is None
    assert stop_tokens(loaded.model, loaded.tokenizer) == sorted([TEXT, TURN])


# ------------------------------------------------------------------------------ the cache


def test_a_file_is_converted_once_and_its_place_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    folder = checkpoints.resolve(str(path))
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "a.gguf")
    monkeypatch.setattr(imports, "_convert", None)  # calling it would raise
    assert checkpoints.resolve(str(moved)) == folder


def test_another_file_of_the_same_name_is_another_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny_llama(seed=0))
    first = checkpoints.load(str(path)).hash
    write_gguf(path, tiny_llama(seed=1))
    assert checkpoints.load(str(path)).hash != first
    write_gguf(path, tiny_llama(seed=0))
    assert checkpoints.load(str(path)).hash == first


def test_a_damaged_folder_of_the_cache_is_made_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    folder = checkpoints.resolve(str(path))
    digest = checkpoints.hash_model(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert checkpoints.hash_model(checkpoints.resolve(str(path))) == digest


def test_a_refused_file_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", without=["blk.1.ffn_up.weight"])
    with pytest.raises(UsageError, match="lacks"):
        checkpoints.resolve(str(path))
    assert [entry for entry in (cache / "models").iterdir() if entry.is_dir()] == []


# ------------------------------------------------------------------------------ import-model


def test_importing_twice_gives_the_same_hash_wherever_the_file_is(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    first = import_model(str(path), tmp_path / "one")
    renamed = path.rename(tmp_path / "b.gguf")
    second = import_model(str(renamed), tmp_path / "two")
    assert first["hash"] == second["hash"] == checkpoints.load(str(renamed)).hash
    assert first["sha256"] == second["sha256"] == imports.content_hash(renamed)


def test_the_command_writes_a_folder_that_says_what_it_was_made_from(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    command = ["import-model", str(path), "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    record = json.loads((tmp_path / "out" / imports.RECORD).read_text())
    assert printed["name"] == record["name"] == "a.gguf"
    assert str(tmp_path) not in json.dumps(record)
    assert checkpoints.load(str(tmp_path / "out")).hash == printed["hash"]
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, UsageError)
    assert "not empty" in str(again.exception)
