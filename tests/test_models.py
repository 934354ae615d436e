"""Models are loaded, adapted, hashed and saved; rows become tokens with and without a template."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.models import adapters, checkpoints, encoding, modes

Make = Callable[..., PreTrainedModel]
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
WORDS = tuple("how do i brew tea no red hot water yes it is".split())
IDS = torch.tensor([[7, 8, 9, 10, 11]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def stored(path: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def text(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids)))


# ------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "opt"])
def test_saved_models_load_as_they_were(
    architecture: str,
    chat: bool,
    make_model: Make,
    make_tokenizer: MakeTokenizer,
    tmp_path: Path,
) -> None:
    model, tokenizer = make_model(architecture), make_tokenizer(WORDS, chat=chat)
    files = checkpoints.save(model, tokenizer, tmp_path / "model")
    assert all(f.suffix in checkpoints.MODEL_SUFFIXES for f in files)
    loaded = checkpoints.load(str(tmp_path / "model"), device="cpu")
    assert torch.equal(logits(loaded.model), logits(model))
    assert not loaded.model.training
    assert loaded.source == str(tmp_path / "model")
    assert loaded.hash == checkpoints.hash_model(tmp_path / "model")
    assert bool(loaded.tokenizer.chat_template) is chat
    rows = Examples([Example("how do i brew tea", "no")])
    assert encoding.encode(loaded.tokenizer, rows, 32) == encoding.encode(tokenizer, rows, 32)


def test_half_precision_weights_are_single_on_a_cpu(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    stored(tmp_path / "model", make_model().half(), make_tokenizer(WORDS))
    loaded = checkpoints.load(str(tmp_path / "model"), device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_a_tokenizer_without_padding_pads_with_the_end_token(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    stored(tmp_path / "model", make_model(), make_tokenizer(WORDS, pad=False))
    loaded = checkpoints.load(str(tmp_path / "model"), device="cpu")
    assert loaded.tokenizer.pad_token == "<eos>"
    assert loaded.model.generation_config.pad_token_id == loaded.tokenizer.eos_token_id


def test_a_tokenizer_without_end_token_is_refused(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    stored(tmp_path / "model", make_model(), make_tokenizer(WORDS, eos=False))
    with pytest.raises(UsageError, match=r"no end-of-sequence token.*set tokenizer\.eos_token"):
        checkpoints.load(str(tmp_path / "model"), device="cpu")


def test_a_tokenizer_with_more_words_than_the_model_is_refused(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    checkpoints.save(make_model(vocab=len(tokenizer) - 2), tokenizer, tmp_path / "model")
    words = rf"has id {len(tokenizer) - 1}, but the model embeds only ids 0 to {len(tokenizer) - 3}"
    with pytest.raises(UsageError, match=words):
        checkpoints.load(str(tmp_path / "model"), device="cpu")


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"is not a model \(no config\.json\)"):
        checkpoints.load(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/nowhere"])
def test_a_directory_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match="no such model directory"):
        checkpoints.load(name)


def test_a_file_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").write_text("hello")
    with pytest.raises(UsageError, match="model: no such model directory"):
        checkpoints.load("model")


def test_a_hub_that_cannot_be_read() -> None:
    with pytest.raises(UsageError, match=r"nobody/nothing: no such directory, and the hub"):
        checkpoints.load("nobody/nothing")


@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_truncated_weights(
    keep: int, make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    path = stored(tmp_path / "model", make_model(), make_tokenizer(WORDS))
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UsageError, match="cannot be loaded as a causal language model"):
        checkpoints.load(str(path), device="cpu")


def test_pickled_weights_are_never_read(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    path = stored(tmp_path / "model", make_model(), make_tokenizer(WORDS))
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="cannot be loaded"):
        checkpoints.load(str(path), device="cpu")


def test_a_broken_configuration(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    path = stored(tmp_path / "model", make_model(), make_tokenizer(WORDS))
    (path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be loaded"):
        checkpoints.load(str(path), device="cpu")


def test_the_world_is_a_model() -> None:
    loaded = checkpoints.load("world", device="cpu")
    assert loaded.hash == checkpoints.hash_model(checkpoints.WORLD_BASE)
    assert loaded.model.config.vocab_size >= len(loaded.tokenizer)


@pytest.mark.parametrize("name", ["warp", "cpu:x", ""])
def test_a_device_that_is_none(name: str) -> None:
    with pytest.raises(UsageError, match="is not a device"):
        checkpoints.pick_device(name)


def test_devices() -> None:
    assert checkpoints.pick_device("cpu").type == "cpu"
    assert checkpoints.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device; use cpu"):
            checkpoints.pick_device("cuda:0")


# ------------------------------------------------------------------------------ hash and save


def test_the_hash_sees_weights_and_tokenizer_and_nothing_else(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(WORDS)
    model: Any = make_model()
    first = checkpoints.hash_model(stored(tmp_path / "a", model, tokenizer))
    assert checkpoints.hash_model(stored(tmp_path / "b", model, tokenizer)) == first
    (tmp_path / "b" / "run.log").write_text("not part of the model")
    assert checkpoints.hash_model(tmp_path / "b") == first
    other = make_tokenizer([*WORDS, "more"])
    assert checkpoints.hash_model(stored(tmp_path / "c", model, other)) != first
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1e-3
    assert checkpoints.hash_model(stored(tmp_path / "d", model, tokenizer)) != first


class Broken:
    """A tokenizer that cannot be written."""

    def save_pretrained(self, path: Path) -> None:
        raise OSError("disk full")


def test_a_save_that_fails_leaves_the_old_model(
    make_model: Make,
    make_tokenizer: MakeTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "models" / "sft"
    checkpoints.save(make_model(), make_tokenizer(WORDS), path)
    before = checkpoints.hash_model(path)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(make_model(seed=1), Broken(), path)  # type: ignore[arg-type]
    assert checkpoints.hash_model(path) == before
    calls, replace = [], os.replace

    def second_fails(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", second_fails)
        with pytest.raises(OSError, match="disk full"):
            checkpoints.save(make_model(seed=1), make_tokenizer(WORDS), path)
    assert checkpoints.hash_model(path) == before
    assert [p.name for p in path.parent.iterdir()] == ["sft"]
    checkpoints.save(make_model(seed=1), make_tokenizer(WORDS), path)
    assert checkpoints.hash_model(path) != before
    assert [p.name for p in path.parent.iterdir()] == ["sft"]


# --------------------------------------------------------------------------------------- LoRA


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt"])
def test_lora_merges_into_a_model_that_loads(
    architecture: str,
    make_model: Make,
    make_tokenizer: MakeTokenizer,
    tmp_path: Path,
    weights_of: Callable[..., dict[str, torch.Tensor]],
) -> None:
    base = make_model(architecture)
    plain, before = logits(base), weights_of(base)
    state = torch.get_rng_state()
    adapted: Any = adapters.add_lora(base, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(adapted), plain)  # B is zero to begin with
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for i, name in enumerate(trained):
            adapted.get_parameter(name).copy_(
                torch.randn(
                    adapted.get_parameter(name).shape, generator=torch.Generator().manual_seed(i)
                )
                / 4
            )
    moved = logits(adapted)
    assert (moved - plain).abs().max() > 0.01
    frozen = {n: p for n, p in adapted.named_parameters() if "lora_" not in n}
    for name, value in before.items():
        kept = [p for n, p in frozen.items() if n.replace(".base_layer", "").endswith(name)]
        assert all(torch.equal(p, value) for p in kept), name
    checkpoints.save(adapters.merge(adapted), make_tokenizer(WORDS), tmp_path / "model")
    loaded = checkpoints.load(str(tmp_path / "model"), device="cpu")
    torch.testing.assert_close(logits(loaded.model), moved, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_adapters(make_model: Make) -> None:
    def first(seed: int) -> torch.Tensor:
        adapted = adapters.add_lora(make_model(), 2, seed=seed)
        return next(p for p in adapted.parameters() if p.requires_grad).detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_an_adapter_directory_is_loaded_with_its_base(
    make_model: Make, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(WORDS)
    base = checkpoints.load(str(stored(tmp_path / "base", make_model(), tokenizer)), device="cpu")
    adapted: Any = adapters.add_lora(base.model, 2, seed=0)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.1)
    stored(tmp_path / "adapter", adapted, tokenizer)
    assert not (tmp_path / "adapter" / "config.json").exists()
    loaded = checkpoints.load(str(tmp_path / "adapter"), device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(adapted), rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_model_without_adapters_merges_to_itself(make_model: Make) -> None:
    model = make_model()
    assert adapters.merge(model) is model


# ------------------------------------------------------------------------------------- tokens

ROW = Example("how do i brew tea", "hot water")


def test_tokens_with_a_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(WORDS, chat=True)
    (row,) = encoding.encode(tokenizer, Examples([ROW]), 32)
    # The template writes <eos> itself: it must not be there twice.
    assert text(tokenizer, row.ids) == "<user> how do i brew tea <assistant> hot water <eos>"
    assert text(tokenizer, row.ids[: row.start]) == "<user> how do i brew tea <assistant>"
    assert encoding.encode_prompts(tokenizer, [ROW.prompt])[0] == list(row.ids[: row.start])


def test_tokens_without_a_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(WORDS)
    (row,) = encoding.encode(tokenizer, Examples([ROW]), 32)
    assert text(tokenizer, row.ids) == "User: how do i brew tea Assistant: hot water <eos>"
    assert text(tokenizer, row.ids[: row.start]) == "User: how do i brew tea Assistant:"


def test_a_template_whose_answers_do_not_follow_its_prompt(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(WORDS, chat=True)
    # Like templates that put something in front of the whole conversation.
    tokenizer.chat_template = (
        "{% if messages|length > 1 %}<unk> {% endif %}<user> {{ messages[0]['content'] }} "
        "{% if add_generation_prompt %}<assistant> {% endif %}"
        "{% if messages|length > 1 %}<assistant> {{ messages[1]['content'] }} <eos>{% endif %}"
    )
    with pytest.raises(
        UsageError, match=r"writes '<user> ' before a prompt when asking, and '<unk>"
    ):
        encoding.encode(tokenizer, Examples([ROW]), 32)


def test_an_end_token_added_by_the_tokenizer_does_not_end_the_prompt(
    make_tokenizer: MakeTokenizer,
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = make_tokenizer(WORDS)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<user> $A <eos>", special_tokens=[("<user>", 3), ("<eos>", 1)]
    )
    (row,) = encoding.encode(tokenizer, Examples([ROW]), 32)
    assert text(tokenizer, row.ids) == "<user> User: how do i brew tea Assistant: hot water <eos>"


def test_long_rows_are_cut_on_the_right(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(WORDS)
    (row,) = encoding.encode(tokenizer, Examples([ROW]), 8)  # the prompt alone has 7 tokens
    assert text(tokenizer, row.ids) == "User: how do i brew tea Assistant: hot"
    with pytest.raises(UsageError, match=r"the prompt of row 1 .* has 7 tokens.* in 7"):
        encoding.encode(tokenizer, Examples([ROW]), 7)


def test_collate_by_hand() -> None:
    rows = [encoding.Encoded((4, 5, 6, 1), 2), encoding.Encoded((7, 1), 1)]
    batch = encoding.collate(rows, 0)
    ignored = encoding.IGNORE
    assert batch["input_ids"].tolist() == [[4, 5, 6, 1], [7, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    # Padding is told by the mask, never by the token: a real end token keeps its label.
    assert batch["labels"].tolist() == [[ignored, ignored, 6, 1], [ignored, 1, ignored, ignored]]
    assert encoding.collate(rows, 1)["labels"].tolist() == batch["labels"].tolist()


def test_the_random_state_is_put_back() -> None:
    before = torch.get_rng_state()
    with modes.isolate_rng(5):
        first = torch.rand(3)

    def boom() -> None:
        with modes.isolate_rng(5):
            assert torch.equal(torch.rand(3), first)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        boom()
    assert torch.equal(torch.get_rng_state(), before)
