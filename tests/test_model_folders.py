"""What can stand in a model's folder is read right or refused, and all of it is in the hash."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import holdfast
from holdfast.errors import UsageError
from holdfast.models import checkpoints, folders, reading

Make = Callable[..., PreTrainedModel]
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
WORDS = tuple("how do i brew tea no red hot water yes it is".split())
IDS = torch.tensor([[7, 8, 9, 10, 11]])
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path) -> Path:
    """Return a full model of two layers, untied."""
    path = tmp_path / "model"
    make_model().save_pretrained(path)
    make_tokenizer(WORDS).save_pretrained(path)
    return path


def edit(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    settings = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(settings | changes), "utf-8")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path, *places: str) -> None:
    """Split the weights over the given files, in turn, with an index."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    homes = {name: places[i % len(places)] for i, name in enumerate(names)}
    for place in places:
        (folder / place).parent.mkdir(exist_ok=True, parents=True)
        own = {name: weights[name] for name in names if homes[name] == place}
        save_file(own, folder / place, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def logits(path: Path) -> torch.Tensor:
    model: Any = checkpoints.load(str(path), device="cpu").model
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def refused(path: Path, pattern: str) -> str:
    """Load a model, which must fail with one short message in a line."""
    with pytest.raises(UsageError, match=pattern) as caught:
        checkpoints.load(str(path), device="cpu")
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


# --------------------------------------------------------------------------- code and questions


def test_no_call_reads_a_model_without_refusing_its_code() -> None:
    root = Path(holdfast.__file__).parent
    calls = [
        (path, call)
        for path in root.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("from_pretrained", "from_config", "LLM")
        and "PeftConfig" not in ast.dump(call.func)  # reads one JSON file
    ]
    assert len(calls) >= 5
    for path, call in calls:
        values = {keyword.arg: keyword.value for keyword in call.keywords}
        value = values.get("trust_remote_code")
        where = f"{path.relative_to(root)}:{call.lineno}"
        assert isinstance(value, ast.Constant), where
        assert value.value is False, where


CODE = "open('EXECUTED', 'w').write('x')\nclass ZorbConfig: pass\n"


@pytest.mark.parametrize("model_type", ["zorbnet", "llama"])
def test_code_of_a_model_is_neither_run_nor_asked_about(
    model_type: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    (folder / "zorb.py").write_text(CODE)
    classes = {"AutoConfig": "zorb.ZorbConfig", "AutoModelForCausalLM": "zorb.ZorbModel"}
    edit(folder, "config.json", model_type=model_type, auto_map=classes)
    refused(folder, r"needs code from its own folder \(zorb\.ZorbConfig\), and such code is never")
    assert not Path("EXECUTED").exists()


def test_code_of_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "zorb.py").write_text(CODE)
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["zorb.ZorbTokenizer", None]})
    refused(folder, r"its tokenizer needs code from its own folder")
    edit(folder, "tokenizer_config.json", auto_map=["zorb.ZorbTokenizer", None])
    refused(folder, r"its tokenizer needs code from its own folder")


def test_a_model_that_transformers_knows_is_read_without_its_code(folder: Path) -> None:
    before = logits(folder)
    (folder / "own.py").write_text(CODE)
    classes = {"AutoConfig": "own.LlamaConfig", "AutoModelForCausalLM": "own.LLaMAForCausalLM"}
    edit(folder, "config.json", auto_map=classes)
    assert torch.equal(logits(folder), before)


# ----------------------------------------------------------------------------------------- hash


def test_the_hash_covers_shards_in_subfolders(folder: Path) -> None:
    before = logits(folder)
    shard(folder, "a.safetensors", "deep/b.safetensors")
    assert torch.equal(logits(folder), before)
    first = checkpoints.hash_model(folder)
    weights = load_file(folder / "deep/b.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1
    save_file(weights, folder / "deep/b.safetensors", metadata={"format": "pt"})
    assert checkpoints.hash_model(folder) != first


def test_the_hash_leaves_out_what_is_not_read(folder: Path) -> None:
    first = checkpoints.hash_model(folder)
    shutil.copytree(folder, folder / "checkpoint-500")
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "README.md").write_text("x")
    assert checkpoints.hash_model(folder) == first


def test_the_hash_sees_a_file_exchanged_with_its_old_time_and_size(folder: Path) -> None:
    file = folder / WEIGHTS
    state = file.stat()
    first = checkpoints.hash_model(folder)
    rewrite(
        folder,
        lambda weights: weights.update(
            {"lm_head.weight": weights["lm_head.weight"].flip(0).contiguous()}
        ),
    )
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_size == state.st_size
    assert checkpoints.hash_model(folder) != first


def test_weights_under_a_name_of_the_configuration(folder: Path) -> None:
    before = logits(folder)
    first = checkpoints.hash_model(folder)
    (folder / "sub").mkdir()
    (folder / WEIGHTS).rename(folder / "sub/w.safetensors")
    edit(folder, "config.json", transformers_weights="sub/w.safetensors")
    assert torch.equal(logits(folder), before)
    assert checkpoints.hash_model(folder) != first
    edit(folder, "config.json", transformers_weights="adapter_model.bin")
    (folder / "adapter_model.bin").write_bytes(b"x")
    refused(folder, "adapter_model.bin is a pickle")


# -------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_weights_in_pickles_are_refused(pickle: str, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / pickle)
    refused(folder, rf"cannot be loaded: no file model.safetensors, and {pickle} is a pickle")


def test_a_pickle_beside_safetensors_is_not_read(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert logits(folder).isfinite().all()


def test_a_distributed_checkpoint_is_refused(folder: Path) -> None:
    # transformers would read these files and leave model.safetensors aside.
    shutil.copy(folder / WEIGHTS, folder / "shard-00000-model-00000-of-00001.safetensors")
    refused(folder, "distributed checkpoint")


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_a_missing_weight_is_named(name: str, folder: Path) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        del weights[name]

    rewrite(folder, drop)
    refused(folder, rf"lacks {name}, which would be initialised at random")


def test_an_index_that_leaves_a_shard_out(folder: Path) -> None:
    shard(folder, "a.safetensors", "b.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file == "a.safetensors"}
    edit(folder, "model.safetensors.index.json", weight_map=kept)
    refused(folder, r"lacks .* and \d+ more weights, which would be initialised at random")


def test_a_shard_that_is_gone(folder: Path) -> None:
    shard(folder, "a.safetensors", "b.safetensors")
    (folder / "b.safetensors").unlink()
    refused(folder, "no file b.safetensors")


def test_a_weight_in_two_shards(folder: Path) -> None:
    shard(folder, "a.safetensors", "b.safetensors")
    weights = load_file(folder / "b.safetensors")
    weights["lm_head.weight"] = torch.zeros(32, 16)
    save_file(weights | load_file(folder / "a.safetensors"), folder / "a.safetensors")
    refused(folder, r"is both in a\.safetensors and in b\.safetensors")


def test_layers_that_the_configuration_cuts_off(folder: Path) -> None:
    edit(folder, "config.json", num_hidden_layers=1)
    refused(folder, r"hold model\.layers\.1\.\S+ and \d+ more weights, for which .* no place")


def test_sizes_that_differ(folder: Path) -> None:
    edit(folder, "config.json", vocab_size=48)
    refused(folder, r"lm_head\.weight has size \[32, 16\] in the file, but \[48, 16\] by config")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_numbers(value: float, folder: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.up_proj.weight"][3, 4] = value

    rewrite(folder, spoil)
    refused(folder, r"model\.layers\.0\.mlp\.up_proj\.weight holds nan or infinite values")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_without_settings(dtype: torch.dtype, folder: Path) -> None:
    rewrite(
        folder,
        lambda weights: weights.update(
            {"lm_head.weight": (weights["lm_head.weight"] * 100).to(dtype)}
        ),
    )
    refused(folder, "lm_head.weight is stored as .*, which is a quantized format")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8"])
def test_quantized_formats_are_refused(method: str, folder: Path) -> None:
    edit(folder, "config.json", quantization_config={"quant_method": method, "bits": 4})
    refused(folder, rf"its weights are quantized \({method}\).*that it was quantized from")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"model_type": "zorb"}, "cannot be loaded as a causal language model"),
        ({"model_type": None}, "cannot be loaded as a causal language model"),
        ({"hidden_size": "wide"}, "cannot be loaded as a causal language model"),
        ({"hidden_act": "zorb"}, "cannot be loaded as a causal language model"),
        ({"num_attention_heads": 0}, "cannot be loaded as a causal language model"),
        ({"rope_parameters": {"rope_type": "zorb"}}, "cannot be loaded as a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": ["LlamaModel"]}, "it is a LlamaModel, not a LlamaForCausalLM"),
    ],
)
def test_configurations_that_cannot_be_right(
    changes: dict[str, Any], pattern: str, folder: Path
) -> None:
    edit(folder, "config.json", **changes)
    refused(folder, pattern)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"llama"', "\x00"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_that_is_damaged(file: str, text: str, folder: Path) -> None:
    (folder / file).write_text(text)
    refused(folder, "cannot be loaded")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "opt"])
def test_a_tied_head_is_not_missing(
    architecture: str, tied: bool, make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    model: Any = make_model(architecture, tied=tied)
    model.save_pretrained(tmp_path)
    make_tokenizer(WORDS).save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(logits(tmp_path), model(input_ids=IDS).logits)


def test_a_head_beside_a_tied_configuration_stays_a_head_of_its_own(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    model: Any = make_model(tied=True)
    model.save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path / "model")
    head = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    rewrite(tmp_path / "model", lambda weights: weights.update({"lm_head.weight": head}))
    first = logits(tmp_path / "model")
    with torch.no_grad():
        hidden = model.model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(first, hidden @ head.T)
    loaded = checkpoints.load(str(tmp_path / "model"), device="cpu")
    assert loaded.model.config.tie_word_embeddings is False
    checkpoints.save(loaded.model, tokenizer, tmp_path / "again")
    assert torch.equal(logits(tmp_path / "again"), first)


@pytest.mark.parametrize("kind", ["AutoModelForSequenceClassification", "AutoModelForMaskedLM"])
@pytest.mark.parametrize("tied", [False, True])
def test_other_kinds_of_models_are_refused(
    kind: str, tied: bool, make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    import transformers

    if kind == "AutoModelForMaskedLM":
        config: Any = transformers.BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, tie_word_embeddings=tied,
        )  # fmt: skip
    else:
        config = make_model(tied=tied).config
    model = getattr(transformers, kind).from_config(config)
    model.save_pretrained(tmp_path)
    make_tokenizer(WORDS).save_pretrained(tmp_path)
    refused(tmp_path, "is not a causal language model: its config.json says it is a")
    edit(tmp_path, "config.json", architectures=None)
    if kind == "AutoModelForSequenceClassification":
        refused(tmp_path, r"lacks lm_head|hold score\.weight, for which")


def test_most_weights_decide_the_stored_type(folder: Path) -> None:
    def halve(weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            if "norm" not in name:
                weights[name] = weights[name].bfloat16()

    assert reading.stored_dtype([folder / WEIGHTS]) == torch.float32
    rewrite(folder, halve)
    edit(folder, "config.json", dtype="float16")  # does not decide
    assert reading.stored_dtype(folders.weight_files(folder)) == torch.bfloat16


def test_a_directory_with_adapters_inside_names_one(folder: Path) -> None:
    inside = folder.parent / "outer" / "safety"
    inside.mkdir(parents=True)
    (inside / "adapter_config.json").write_text("{}")
    refused(inside.parent, r"is not a model \(no config\.json\); it holds the adapter .*safety")


@pytest.mark.parametrize("settings", [None, {"eos_token": "</s>"}])
@pytest.mark.parametrize("architecture", ["qwen2", "gpt_neox", "opt", "gemma2", "llama"])
def test_a_folder_without_a_vocabulary_is_refused(
    architecture: str, settings: dict[str, str] | None, make_model: Make, tmp_path: Path
) -> None:
    # transformers would make an empty tokenizer, and every prompt would be empty.
    make_model(architecture).save_pretrained(tmp_path)
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(tmp_path, r"has no vocabulary|cannot be loaded as a tokenizer")
