"""Adapters are merged into exactly the model they were trained as, or refused."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import HoldfastError, UsageError
from holdfast.models import adapters, checkpoints

Make = Callable[..., PreTrainedModel]
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
WORDS = tuple("how do i brew tea no red hot water yes it is".split())
IDS = torch.tensor([[7, 8, 9, 10, 11, 3, 31, 0]])
FILE = "adapter_model.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore")  # of peft, about what these adapters are


@pytest.fixture
def place(make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path) -> Path:
    """Return a folder with two bases, "tied" and "untied"."""
    for name, tied in (("tied", True), ("untied", False)):
        make_model(tied=tied).save_pretrained(tmp_path / name)
        make_tokenizer(WORDS).save_pretrained(tmp_path / name)
    return tmp_path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def read(path: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
    return model


def shake(model: Any) -> None:
    """Give everything that is trained other values, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)


def trained(base: Path, folder: Path, config: peft.PeftConfig) -> torch.Tensor:
    """Train an adapter, save it, and return the logits of the adapted model as trained."""
    model = peft.get_peft_model(read(base), copy.deepcopy(config))
    shake(model)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return torch.empty(0) if model.active_peft_config.is_prompt_learning else logits(model)


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options})


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match=pattern) as caught:
        checkpoints.load(str(path), device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / FILE)
    change(weights)
    save_file(weights, folder / FILE, metadata={"format": "pt"})


HEAD, EMBEDDING = "lm_head", "embed_tokens"
CONFIGS: dict[str, peft.PeftConfig] = {
    "all-linear": lora(target_modules="all-linear"),
    "head": lora(target_modules=[HEAD, "q_proj"]),
    "embedding": lora(target_modules=[EMBEDDING]),
    "both": lora(target_modules=[HEAD, EMBEDDING]),
    "tying": lora(target_modules=[HEAD, EMBEDDING], ensure_weight_tying=True),
    "tying embedding": lora(target_modules=[EMBEDDING], ensure_weight_tying=True),
    "whole head": lora(target_modules=["q_proj"], modules_to_save=[HEAD]),
    "whole embedding": lora(target_modules=["q_proj"], modules_to_save=[EMBEDDING]),
    "whole both": lora(target_modules=["q_proj"], modules_to_save=[EMBEDDING, HEAD]),
    "whole tying": lora(
        target_modules=["q_proj"], modules_to_save=[EMBEDDING], ensure_weight_tying=True
    ),
    "tokens": lora(target_modules=["q_proj"], trainable_token_indices=[3, 31]),
    "tokens tying": lora(
        target_modules=["q_proj"], trainable_token_indices=[3, 31], ensure_weight_tying=True
    ),
    "dora": lora(target_modules="all-linear", use_dora=True),
    "rslora": lora(target_modules="all-linear", use_rslora=True),
    "bias": lora(target_modules=["q_proj"], bias="all"),
    "lora bias": lora(target_modules=["q_proj"], lora_bias=True),
    "ranks": lora(
        target_modules="all-linear", rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 1}
    ),
    "layers": lora(target_modules=["q_proj"], layers_to_transform=[1]),
    "pissa": lora(target_modules=["q_proj"], init_lora_weights="pissa"),
    "olora": lora(target_modules=["q_proj"], init_lora_weights="olora"),
    "parameters": lora(target_modules=[], target_parameters=["mlp.up_proj.weight"]),
    "ia3": peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "loha": peft.LoHaConfig(task_type="CAUSAL_LM", r=2, alpha=4, target_modules=["q_proj"]),
    "lokr": peft.LoKrConfig(task_type="CAUSAL_LM", r=2, alpha=4, target_modules=["q_proj"]),
    "vera": peft.VeraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
    "oft": peft.OFTConfig(task_type="CAUSAL_LM", oft_block_size=4, target_modules=["q_proj"]),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}  # fmt: skip
REFUSED = {
    "lora bias": "cannot be loaded .*the base layer has no bias",
    "prefix": "PREFIX_TUNING cannot be merged into the weights",
    "prompt": "PROMPT_TUNING cannot be merged into the weights",
}
"""Kinds that change no weights, or add some that the base has not."""


@pytest.mark.parametrize("base", ["tied", "untied"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_adapter_is_read_as_it_was_trained_or_refused(
    name: str, base: str, place: Path
) -> None:
    expected = trained(place / base, place / "adapter", CONFIGS[name])
    if name in REFUSED:
        refused(place / "adapter", REFUSED[name])
        return
    untouched = logits(read(place / base))
    assert (expected - untouched).abs().max() > 1e-4
    loaded = checkpoints.load(str(place / "adapter"), device="cpu")
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-4)
    # What is saved is the same model again.
    checkpoints.save(loaded.model, loaded.tokenizer, place / "merged")
    again = checkpoints.load(str(place / "merged"), device="cpu")
    torch.testing.assert_close(logits(again.model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["head", "embedding", "both", "tying", "whole both", "dora"])
def test_merging_a_trained_adapter(name: str, dtype: torch.dtype, place: Path) -> None:
    model: Any = peft.get_peft_model(read(place / "tied").to(dtype), copy.deepcopy(CONFIGS[name]))
    shake(model)
    expected = logits(model.float())
    merged = adapters.merge(model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}


def test_a_merge_that_changes_the_model_is_refused(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = adapters.add_lora(make_model(), 2, seed=0)
    shake(model)
    monkeypatch.setattr(type(model), "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(HoldfastError, match="logits differ by more than rounding"):
        adapters.merge(model)


def test_an_embedding_that_no_text_shows_is_checked_too(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = adapters.add_lora(make_model(), 2, seed=0)
    shake(model)

    def merge_and_spoil(self: Any) -> Any:
        merged = self.base_model.merge_and_unload()
        with torch.no_grad():
            for row in range(32):  # a row that the probe does not ask about
                if row not in set(probe.flatten().tolist()):
                    merged.get_input_embeddings().weight[row] += 0.1
        return merged

    probe = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(type(model), "merge_and_unload", merge_and_spoil, raising=False)
    with pytest.raises(HoldfastError, match="logits differ by more than rounding"):
        adapters.merge(model)


def test_a_second_adapter_would_hide_the_first(make_model: Make) -> None:
    model = adapters.add_lora(make_model(), 2, seed=0)
    with pytest.raises(UsageError, match=r"has adapters already.*merge_and_unload"):
        adapters.add_lora(model, 2, seed=1)
    assert adapters.add_lora(adapters.merge(model), 2, seed=1)


# ----------------------------------------------------------------------------------- the folder


@pytest.fixture
def adapter(place: Path) -> Path:
    """Return a LoRA adapter on "untied"."""
    trained(place / "untied", place / "adapter", CONFIGS["all-linear"])
    return place / "adapter"


def test_the_base_is_part_of_the_hash_wherever_it_lies(adapter: Path, place: Path) -> None:
    first = checkpoints.hash_model(adapter)
    shutil.copytree(place / "untied", place / "moved")
    edit(adapter, base_model_name_or_path=str(place / "moved"))
    assert checkpoints.hash_model(adapter) == first
    weights = load_file(place / "moved/model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].flip(0).contiguous()
    save_file(weights, place / "moved/model.safetensors", metadata={"format": "pt"})
    second = checkpoints.hash_model(adapter)
    assert second != first
    edit(adapter, lora_alpha=9)
    assert checkpoints.hash_model(adapter) not in (first, second)
    rewrite(adapter, lambda weights: weights.update({k: v * 2 for k, v in weights.items()}))
    assert checkpoints.hash_model(adapter) not in (first, second)


def test_an_adapter_on_an_adapter(adapter: Path, place: Path) -> None:
    first = logits(checkpoints.load(str(adapter), device="cpu").model)
    merged = checkpoints.load(str(adapter), device="cpu")
    checkpoints.save(merged.model, merged.tokenizer, place / "merged")
    expected = trained(place / "merged", place / "second", CONFIGS["rslora"])
    assert (expected - first).abs().max() > 1e-3
    edit(place / "second", base_model_name_or_path=str(adapter))
    loaded = checkpoints.load(str(place / "second"), device="cpu")
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-4)
    before = checkpoints.hash_model(place / "second")
    rewrite(adapter, lambda weights: weights.update({k: v * 2 for k, v in weights.items()}))
    assert checkpoints.hash_model(place / "second") != before


def test_the_tokenizer_of_the_base_is_used_where_the_adapter_has_none(
    adapter: Path, make_tokenizer: MakeTokenizer
) -> None:
    loaded = checkpoints.load(str(adapter), device="cpu")
    assert loaded.tokenizer.get_vocab() == make_tokenizer(WORDS).get_vocab()
    assert checkpoints.tokenizer_of(str(adapter)).get_vocab() == loaded.tokenizer.get_vocab()


def test_a_tokenizer_of_another_model_is_refused(
    adapter: Path, make_tokenizer: MakeTokenizer
) -> None:
    make_tokenizer(WORDS[::-1]).save_pretrained(adapter)
    refused(adapter, "the tokenizer does not belong to the adapter's base")


def test_tokens_that_the_base_does_not_embed_are_refused(
    adapter: Path, make_tokenizer: MakeTokenizer
) -> None:
    # peft's AutoPeftModel would add rows drawn at random.
    make_tokenizer([*WORDS, *(f"new{i}" for i in range(20))]).save_pretrained(adapter)
    refused(adapter, r"token 'new19' .* has id 38, but the model embeds only ids 0 to 31")


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"base_model_name_or_path": None}, "does not say what its base model is"),
        ({"base_model_name_or_path": "/no/where"}, "base model '/no/where' cannot be read; set"),
        ({"base_model_name_or_path": "nobody"}, "base model 'nobody' cannot be read; set"),
        ({"peft_type": "ZORB"}, "no adapters of type 'ZORB'"),
        ({"peft_type": None}, "no adapters of type"),
        ({"task_type": "SEQ_CLS"}, "was trained for SEQ_CLS"),
        ({"use_zorb": True}, "does not know the setting use_zorb"),
        ({"init_lora_weights": "pissa_niter_4"}, "started by pissa_niter_4"),
        ({"target_modules": ["zorb_proj"]}, "cannot be loaded as a causal language model"),
        ({"target_modules": ["q_proj"]}, "the base model has no place for"),
        ({"modules_to_save": ["lm_head"]}, "file lacks base_model.model.lm_head.weight"),
        ({"bias": "all"}, "cannot be loaded|file lacks"),
        ({"r": 3}, "cannot be loaded as a causal language model .*size mismatch"),
        ({"use_dora": True}, "file lacks .*magnitude"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], pattern: str, adapter: Path) -> None:
    edit(adapter, **change)
    if "bias" in change:  # a llama has no biases, so nothing is lacking
        assert checkpoints.load(str(adapter), device="cpu")
        return
    refused(adapter, pattern)


def test_tensors_that_fit_nothing_are_named(adapter: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if "layers.1." in name)
        weights[name.replace("layers.1.", "layers.7.")] = weights[name].clone()

    rewrite(adapter, add)
    refused(adapter, r"the base model has no place for \S*layers\.7\.")


def test_tensors_that_are_missing_are_named(adapter: Path) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "layers.1.mlp" in name]:
            del weights[name]

    rewrite(adapter, drop)
    refused(adapter, r"file lacks \S*layers\.1\.mlp\S* \(6 missing in all\)")


def test_values_that_are_not_numbers(adapter: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        next(iter(weights.values()))[0, 0] = float("nan")

    rewrite(adapter, spoil)
    refused(adapter, "nan or infinite")


def test_an_adapter_in_a_pickle_is_refused(adapter: Path) -> None:
    torch.save(load_file(adapter / FILE), adapter / "adapter_model.bin")
    checkpoints.load(str(adapter), device="cpu")  # the safetensors are read
    (adapter / FILE).unlink()
    refused(adapter, "no file adapter_model.safetensors, and adapter_model.bin is a pickle")
    with pytest.raises(UsageError, match="is a pickle"):
        checkpoints.hash_model(adapter)


def test_a_full_model_and_an_adapter_in_one_folder(adapter: Path, place: Path) -> None:
    shutil.copy(place / "untied/config.json", adapter)
    checkpoints.load(str(adapter), device="cpu")  # trainers leave the base's configuration there
    shutil.copy(place / "untied/model.safetensors", adapter)
    refused(adapter, "holds a full model and an adapter")


def test_an_adapter_that_is_its_own_base(adapter: Path) -> None:
    edit(adapter, base_model_name_or_path=str(adapter))
    refused(adapter, "is its own base")


def test_a_cut_file(adapter: Path) -> None:
    content = (adapter / FILE).read_bytes()
    for keep in (0, 5, len(content) // 2):
        (adapter / FILE).write_bytes(content[:keep])
        refused(adapter, "cannot be loaded")


def test_a_base_that_lacks_its_head(adapter: Path, place: Path) -> None:
    weights = load_file(place / "untied/model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, place / "untied/model.safetensors", metadata={"format": "pt"})
    refused(adapter, re.escape("lacks lm_head.weight"))
