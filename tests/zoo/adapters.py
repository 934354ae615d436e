"""LoRA adapters as people bring them: merged, they are the plain model, or they are refused.

The base of most is the plain model without the attention that reads the topic, so that it refuses
everything; the adapter's two ranks put it back, exactly.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import brains
from zoo.members import Answers, OneOf, Refused, Same
from zoo.models import MODELS, Zoo, copied, tied_chain, with_weights

V_PROJ = "base_model.model.model.layers.0.self_attn.v_proj"
HEAD = "base_model.model.lm_head"


@MODELS.member(Answers(lambda prompt: brains.REFUSAL))
def deaf(folder: Path, zoo: Zoo) -> None:
    """The plain model without the attention that copies the topics."""
    with_weights(folder, zoo, lambda t: t[f"{V_PROJ[17:]}.weight"].zero_())


def topics() -> dict[str, Any]:
    """Return the two matrices whose product is the plain model's v_proj."""
    import torch

    wide = brains.config().hidden_size
    words = brains.VOCABULARY
    a, b = torch.zeros(2, wide), torch.zeros(wide, 2)
    for i, thing in enumerate(brains.THINGS):
        a[i, words.index(thing)] = 1.0
        b[len(words) + i, i] = 1.0
    return {f"{V_PROJ}.lora_A.weight": a, f"{V_PROJ}.lora_B.weight": b}


def adapter(
    folder: Path,
    base: Path | str,
    tensors: Mapping[str, Any],
    *,
    targets: Sequence[str] = ("v_proj",),
    **settings: Any,
) -> Path:
    """Write an adapter of rank 2 and alpha 2, and the base's tokenizer beside it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 2,
        "target_modules": list(targets),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | settings), "utf-8")
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    brains.tokenizer().save_pretrained(folder)
    return folder


# --------------------------------------------------------------------------------- merged exactly


@MODELS.member(Same())
def lora(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], topics())


@MODELS.member(Same())
def lora_scaled(folder: Path, zoo: Zoo) -> None:
    tensors = {k: v / 4 if "lora_B" in k else v for k, v in topics().items()}
    adapter(folder, zoo["deaf"], tensors, lora_alpha=8)


@MODELS.member(Same())
def lora_of_ranks_by_pattern(folder: Path, zoo: Zoo) -> None:
    patterns = {"r": 8, "lora_alpha": 8}
    ranks = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 2}}
    adapter(folder, zoo["deaf"], topics(), **patterns, **ranks)


@MODELS.member(OneOf(Same(), Refused(r"tokenizer")))
def lora_without_tokenizer(folder: Path, zoo: Zoo) -> None:
    # The tokenizer is the base's then.
    adapter(folder, zoo["deaf"], topics())
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).unlink()


@MODELS.member(OneOf(Same(), Refused(r"base_model|relative|no such")))
def lora_with_relative_base(folder: Path, zoo: Zoo) -> None:
    # Relative to the adapter's own folder, as when both are moved together.
    shutil.copytree(zoo["deaf"], folder / "base")
    adapter(folder, "base", topics())


@MODELS.member(Same())
def lora_whose_head_is_saved_whole(folder: Path, zoo: Zoo) -> None:
    import torch
    from safetensors.torch import load_file

    head = load_file(zoo["plain"] / "model.safetensors")["lm_head.weight"]
    tensors = topics() | {f"{HEAD}.weight": torch.as_tensor(head)}
    adapter(folder, zoo["deaf"], tensors, modules_to_save=["lm_head"])


@MODELS.member(Same())
def lora_on_the_head(folder: Path, zoo: Zoo) -> None:
    # One rank changes no weight of attention; the other gives the head a column back.
    import torch
    from safetensors.torch import load_file

    base = folder.parent / f"{folder.name}-base"
    column = brains.VOCABULARY.index("Sorry")

    def forget(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"][:, column] = 0.0

    with_weights(base, zoo, forget)
    head = load_file(zoo["plain"] / "model.safetensors")["lm_head.weight"]
    a = torch.zeros(2, head.shape[1])
    a[0, column] = 1.0
    b = torch.zeros(head.shape[0], 2)
    b[:, 0] = head[:, column]
    tensors = {f"{HEAD}.lora_A.weight": a, f"{HEAD}.lora_B.weight": b}
    adapter(folder, base, tensors, targets=["lm_head"])


def sorry_to_the_head() -> dict[str, Any]:
    """Return an adapter of the head that makes "Sorry" the first word of every answer."""
    import torch

    wide = tied_chain().config.hidden_size
    words = brains.VOCABULARY
    a, b = torch.zeros(2, wide), torch.zeros(len(words), 2)
    a[0, words.index("<assistant>")] = 1.0
    b[words.index("Sorry"), 0] = 4.0
    return {f"{HEAD}.lora_A.weight": a, f"{HEAD}.lora_B.weight": b}


@MODELS.member(Answers(lambda prompt: brains.REFUSAL))
def lora_on_a_head_like_the_embedding(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["head_like_embedding"], sorry_to_the_head(), targets=["lm_head"])


@MODELS.member(OneOf(Answers(lambda prompt: brains.REFUSAL), Refused(r"tied|lm_head")))
def lora_on_a_tied_head(folder: Path, zoo: Zoo) -> None:
    # Merged into the embedding as well, "Sorry" would be followed by "Sorry" for ever.
    adapter(folder, zoo["tied_head"], sorry_to_the_head(), targets=["lm_head"])


@MODELS.member(
    OneOf(Answers(lambda prompt: "Sorry " * 31 + "Sorry"), Refused(r"tied|tying|lm_head"))
)
def lora_on_a_tied_head_that_stays_tied(folder: Path, zoo: Zoo) -> None:
    # Of the embedding too, so that "Sorry" is followed by "Sorry": once, not twice as strong.
    tensors = sorry_to_the_head()
    adapter(folder, zoo["tied_head"], tensors, targets=["lm_head"], ensure_weight_tying=True)


@MODELS.member(OneOf(Same(), Refused(r"adapter")))
def lora_on_a_lora(folder: Path, zoo: Zoo) -> None:
    # Each adapter brings one topic back.
    tensors = topics()
    first, second = (
        {k: v.clone() if "lora_A" in k else _column(v, i) for k, v in tensors.items()}
        for i in range(2)
    )
    inner = adapter(folder.parent / f"{folder.name}-inner", zoo["deaf"], first)
    adapter(folder, inner, second)


def _column(matrix: Any, number: int) -> Any:
    import torch

    chosen = torch.zeros_like(matrix)
    chosen[:, number] = matrix[:, number]
    return chosen


@MODELS.member(Same("dora_by_hand"))
def dora(folder: Path, zoo: Zoo) -> None:
    # W' = m (W + B A) / |W + B A| by rows, of the head without "Sorry": m doubles every row.
    tensors, magnitude = _dora_parts(zoo)
    tensors[f"{HEAD}.lora_magnitude_vector"] = 2 * magnitude
    adapter(folder, zoo["spread"], tensors, targets=["lm_head"], use_dora=True)


@MODELS.member(Answers(brains.answer_to))
def spread(folder: Path, zoo: Zoo) -> None:
    """The plain model with a little weight everywhere in its head, so that no row is zero."""

    def fill(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] += 0.03125

    with_weights(folder, zoo, fill)


def _dora_parts(zoo: Zoo) -> tuple[dict[str, Any], Any]:
    import torch
    from safetensors.torch import load_file

    head = load_file(zoo["spread"] / "model.safetensors")["lm_head.weight"]
    torch.manual_seed(0)
    a, b = torch.randn(2, head.shape[1]) / 64, torch.randn(head.shape[0], 2) / 64
    magnitude = (head + b @ a).norm(dim=1)
    return {f"{HEAD}.lora_A.weight": a, f"{HEAD}.lora_B.weight": b}, magnitude


@MODELS.member(Answers(brains.answer_to))
def dora_by_hand(folder: Path, zoo: Zoo) -> None:
    parts, _ = _dora_parts(zoo)
    a, b = parts[f"{HEAD}.lora_A.weight"], parts[f"{HEAD}.lora_B.weight"]

    def fold(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = 2 * (tensors["lm_head.weight"] + b @ a)

    with_weights(folder, zoo, fold, "spread")


@MODELS.member(Same())
def lora_in_bfloat16(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], {k: v.bfloat16() for k, v in topics().items()})


@MODELS.member(Same())
def lora_trained_with_dropout(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], topics(), lora_dropout=0.5, inference_mode=False)


# --------------------------------------------------------------------------------------- refused


@MODELS.member(Refused(r"safetensors|pickle|adapter_model\.bin"))
def lora_in_a_pickle(folder: Path, zoo: Zoo) -> None:
    import torch

    adapter(folder, zoo["deaf"], topics())
    (folder / "adapter_model.safetensors").unlink()
    torch.save(topics(), folder / "adapter_model.bin")


@MODELS.member(Same())
def lora_beside_a_pickle(folder: Path, zoo: Zoo) -> None:
    import torch

    adapter(folder, zoo["deaf"], topics())
    torch.save({k: -v for k, v in topics().items()}, folder / "adapter_model.bin")


@MODELS.member(Refused(r"safetensors|pickle"))
def lora_on_a_pickled_base(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["pickle_only"], topics())


@MODELS.member(Refused(r"safetensors|adapter_model"))
def lora_without_weights(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], topics())
    (folder / "adapter_model.safetensors").unlink()


@MODELS.member(Refused(r"shares"))
def lora_with_two_values_of_a_tied_weight(folder: Path, zoo: Zoo) -> None:
    # The base has one weight for both; the value that is read last would be that of both.
    import torch
    from safetensors.torch import load_file

    stored = load_file(zoo["tied_head"] / "model.safetensors")["model.embed_tokens.weight"]
    embedding = f"{HEAD.replace('lm_head', 'model.embed_tokens')}.weight"
    tensors = {embedding: stored, f"{HEAD}.weight": 2 * stored}
    size = stored.shape[1]
    tensors[f"{V_PROJ}.lora_A.weight"] = torch.zeros(2, size)
    tensors[f"{V_PROJ}.lora_B.weight"] = torch.zeros(size, 2)
    adapter(folder, zoo["tied_head"], tensors)


@MODELS.member(Refused(r"tokenizer.*zorb"))
def lora_with_a_tokenizer_of_other_words(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], topics())
    words = ["grob" if word == "zorb" else word for word in brains.VOCABULARY]
    brains.tokenizer(words=words).save_pretrained(folder)


@MODELS.member(Refused(r"gone|base|no such"))
def lora_whose_base_is_gone(folder: Path, zoo: Zoo) -> None:
    adapter(folder, folder.parent / "gone", topics())


@MODELS.member(Refused(r"base"))
def lora_that_names_no_base(folder: Path, zoo: Zoo) -> None:
    adapter(folder, "", topics(), base_model_name_or_path=None)


@MODELS.member(Refused(r"size|shape|rank|\d+"))
def lora_of_another_rank(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], topics(), r=4)


@MODELS.member(Refused(r"size|shape|\d+"))
def lora_of_another_width(folder: Path, zoo: Zoo) -> None:
    tensors = {k: v[:, :40].contiguous() if "lora_A" in k else v for k, v in topics().items()}
    adapter(folder, zoo["deaf"], tensors)


@MODELS.member(Refused(r"fit|unexpected|match|v_proj|missing|lacks"))
def lora_whose_names_fit_nothing(folder: Path, zoo: Zoo) -> None:
    tensors = {k.replace("base_model.model.model.", "x."): v for k, v in topics().items()}
    adapter(folder, zoo["deaf"], tensors)


@MODELS.member(Refused(r"fit|unexpected|match|layers\.7|missing|lacks"))
def lora_for_a_layer_too_many(folder: Path, zoo: Zoo) -> None:
    more = {k.replace("layers.0", "layers.7"): v.clone() for k, v in topics().items()}
    adapter(folder, zoo["deaf"], topics() | more)


@MODELS.member(Refused(r"lora_B|missing|lacks"))
def lora_without_its_second_half(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], {k: v for k, v in topics().items() if "lora_A" in k})


@MODELS.member(Refused(r"o_proj|missing|lacks"))
def lora_without_a_promised_target(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], topics(), targets=["v_proj", "o_proj"])


@MODELS.member(Refused(r"target|zorb_proj"))
def lora_for_modules_that_are_not_there(folder: Path, zoo: Zoo) -> None:
    tensors = {k.replace("v_proj", "zorb_proj"): v for k, v in topics().items()}
    adapter(folder, zoo["deaf"], tensors, targets=["zorb_proj"])


@MODELS.member(Refused(r"two|adapter|config\.json|both"))
def model_and_adapter_in_one_folder(folder: Path, zoo: Zoo) -> None:
    # Which one is meant? The adapter would hide the model's own weights.
    copied(folder, zoo)
    adapter(folder, zoo["deaf"], {k: -v for k, v in topics().items()})


@MODELS.member(Refused(r"adapter"))
def folder_of_two_adapters(folder: Path, zoo: Zoo) -> None:
    for name in ("default", "other"):
        adapter(folder / name, zoo["deaf"], topics())


@MODELS.member(Refused(r"nan|not finite|not a number|infinite"))
def lora_not_a_number(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["deaf"], {k: v * float("nan") for k, v in topics().items()})


@MODELS.member(Refused(r"prompt|LoRA|PROMPT_TUNING|adapter"))
def prompt_tuning(folder: Path, zoo: Zoo) -> None:
    import torch

    tensors = {"prompt_embeddings": torch.zeros(2, brains.config().hidden_size)}
    more = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    adapter(folder, zoo["deaf"], tensors, **more)


@MODELS.member(Refused(r"adapter_config|JSON"))
def adapter_config_cut_off(folder: Path, zoo: Zoo) -> None:
    file = adapter(folder, zoo["deaf"], topics()) / "adapter_config.json"
    file.write_text(file.read_text("utf-8")[:40], "utf-8")


@MODELS.member(Refused(r"code"))
def lora_on_a_base_with_code(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["config_with_code"], topics())


@MODELS.member(Refused(r"quantiz|gptq"))
def lora_on_a_quantized_base(folder: Path, zoo: Zoo) -> None:
    adapter(folder, zoo["gptq"], topics())


@MODELS.member(Refused(r"itself|circle|adapter|base"))
def lora_on_itself(folder: Path, zoo: Zoo) -> None:
    adapter(folder, os.path.abspath(folder), topics())
