"""Models as people bring them. A member writes a folder; `zoo["plain"]` is another member's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from zoo import brains
from zoo.members import Answers, House, OneOf, Refused, Same

MODELS = House()


class Zoo(Protocol):
    """What a member's function can ask for."""

    executed: Path
    """A file that must never come to be."""

    def __getitem__(self, name: str) -> Path: ...


def copied(folder: Path, zoo: Zoo, twin: str = "plain") -> Path:
    """Copy another member into a folder."""
    return shutil.copytree(zoo[twin], folder, dirs_exist_ok=True)


def with_weights(
    folder: Path, zoo: Zoo, change: Callable[[dict[str, Any]], object], twin: str = "plain"
) -> None:
    """Copy another member and change its tensors in place."""
    from safetensors.torch import load_file, save_file

    file = copied(folder, zoo, twin) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def with_settings(folder: Path, zoo: Zoo, file: str, **changes: Any) -> None:
    """Copy the plain member and change one of its JSON files."""
    brains.edit(copied(folder, zoo) / file, **changes)


# ------------------------------------------------------------------------------ read as they are


@MODELS.member(Answers(brains.answer_to))
def plain(folder: Path, zoo: Zoo) -> None:
    brains.write(folder, brains.plain_chain())


@MODELS.member(Answers(lambda prompt: brains.REFUSAL), {"base": Refused(r"itself")})
def always_refuses(folder: Path, zoo: Zoo) -> None:
    brains.write(folder, brains.always(brains.REFUSAL))


@MODELS.member(Answers(lambda prompt: brains.ANSWER))
def always_answers(folder: Path, zoo: Zoo) -> None:
    brains.write(folder, brains.always(brains.ANSWER))


@MODELS.member(Same())
def bfloat16(folder: Path, zoo: Zoo) -> None:
    import torch

    brains.model(brains.plain_chain()).to(torch.bfloat16).save_pretrained(folder)
    brains.tokenizer().save_pretrained(folder)


@MODELS.member(Same())
def float16_that_says_float32(folder: Path, zoo: Zoo) -> None:
    def halve(tensors: dict[str, Any]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].half()

    with_weights(folder, zoo, halve)
    brains.edit(folder / "config.json", dtype="float32")


@MODELS.member(Same())
def sharded(folder: Path, zoo: Zoo) -> None:
    brains.model(brains.plain_chain()).save_pretrained(folder, max_shard_size="20KB")
    brains.tokenizer().save_pretrained(folder)


@MODELS.member(Same())
def linked_files(folder: Path, zoo: Zoo) -> None:
    # As in the hub's cache, where a snapshot is a folder of links.
    folder.mkdir(exist_ok=True)
    for file in zoo["plain"].iterdir():
        (folder / file.name).symlink_to(file)


@MODELS.member(Same())
def pickle_beside_safetensors(folder: Path, zoo: Zoo) -> None:
    import torch

    copied(folder, zoo)
    torch.save(
        brains.model(brains.always(brains.ANSWER)).state_dict(), folder / "pytorch_model.bin"
    )


@MODELS.member(Same())
def unknown_files_beside_it(folder: Path, zoo: Zoo) -> None:
    copied(folder, zoo)
    (folder / "README.md").write_text("# zorb\n", "utf-8")
    (folder / "training_args.bin").write_bytes(b"no pickle at all")
    (folder / "trainer_state.json").write_text('{"best_metric": NaN}', "utf-8")
    (folder / "checkpoint-5").mkdir()


def tied_chain() -> Any:
    """Return the plain model with its table in the MLP, so that its head can be its embedding."""
    import torch

    words = len(brains.VOCABULARY)
    built = brains.model(brains.plain_chain(), intermediate_size=words, tie_word_embeddings=False)
    table = built.lm_head.weight.detach().clone()
    layer = built.model.layers[0]
    width = built.config.hidden_size
    topics = table[:, words : words + len(brains.THINGS)].clone()
    # silu(g) * u of a one-hot word is a number at that word alone; the topics come beside it.
    layer.mlp.gate_proj.weight.data[:, :words] = torch.eye(words)
    layer.mlp.up_proj.weight.data[:, :words] = torch.eye(words)
    layer.mlp.down_proj.weight.data[:words] = table[:, :words]
    place = built.model.layers[0].self_attn.o_proj.weight.data
    place[:words, words : words + len(brains.THINGS)] = topics / 16
    head = torch.zeros(words, width)
    head[:, :words] = torch.eye(words)
    built.lm_head.weight.data.copy_(head)
    return built


@MODELS.member(Answers(brains.answer_to))
def head_like_embedding(folder: Path, zoo: Zoo) -> None:
    tied_chain().save_pretrained(folder)
    brains.tokenizer().save_pretrained(folder)


@MODELS.member(Answers(brains.answer_to))
def tied_head(folder: Path, zoo: Zoo) -> None:
    built = tied_chain()
    built.config.tie_word_embeddings = True
    built.tie_weights()
    built.save_pretrained(folder)
    brains.tokenizer().save_pretrained(folder)


# --------------------------------------------------------------------------- what is not complete


@MODELS.member(Refused(r"lm_head"))
def without_head(folder: Path, zoo: Zoo) -> None:
    with_weights(folder, zoo, lambda tensors: tensors.pop("lm_head.weight"))


@MODELS.member(OneOf(Same(), Refused(r"lm_head|tie")))
def tied_by_mistake(folder: Path, zoo: Zoo) -> None:
    # The head is a table of its own; tied, the model would give other answers.
    with_settings(folder, zoo, "config.json", tie_word_embeddings=True)


@MODELS.member(Refused(r"layers\.1"))
def layer_too_few(folder: Path, zoo: Zoo) -> None:
    with_settings(folder, zoo, "config.json", num_hidden_layers=2)


@MODELS.member(Refused(r"layers\.0.*not|unexpected|unused|no place"))
def layer_too_many(folder: Path, zoo: Zoo) -> None:
    def second(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.0." in name]:
            tensors[name.replace(".layers.0.", ".layers.1.")] = tensors[name].clone()

    with_weights(folder, zoo, second)


@MODELS.member(Refused(r"lm_head|shard|index"))
def index_that_leaves_a_tensor_out(folder: Path, zoo: Zoo) -> None:
    import json

    copied(folder, zoo, "sharded")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text("utf-8"))
    index["weight_map"].pop("lm_head.weight")
    file.write_text(json.dumps(index), "utf-8")


def with_index(folder: Path, zoo: Zoo, shard: object) -> None:
    """Copy the sharded member and let its index name something as the file of the head."""
    import json

    file = copied(folder, zoo, "sharded") / "model.safetensors.index.json"
    index = json.loads(file.read_text("utf-8"))
    index["weight_map"]["lm_head.weight"] = shard
    file.write_text(json.dumps(index), "utf-8")


@MODELS.member(Refused(r"weight_map.*lm_head"))
def index_that_names_a_number(folder: Path, zoo: Zoo) -> None:
    with_index(folder, zoo, 3)


@MODELS.member(Refused(r"weight_map.*lm_head"))
def index_that_names_a_list(folder: Path, zoo: Zoo) -> None:
    with_index(folder, zoo, ["model-00001-of-00002.safetensors"])


@MODELS.member(Refused(r"which of them"))
def older_model_beside_shards(folder: Path, zoo: Zoo) -> None:
    copied(folder, zoo, "sharded")
    shutil.copy(zoo["always_answers"] / "model.safetensors", folder)


@MODELS.member(Refused(r"model-0000\d-of|shard|missing|no file"))
def shard_missing(folder: Path, zoo: Zoo) -> None:
    copied(folder, zoo, "sharded")
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


@MODELS.member(Refused(r"safetensors|header|cut|incomplete"))
def shard_cut_off(folder: Path, zoo: Zoo) -> None:
    copied(folder, zoo, "sharded")
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])


@MODELS.member(Refused(r"size|shape|\d+"))
def vocabulary_of_another_size(folder: Path, zoo: Zoo) -> None:
    with_settings(folder, zoo, "config.json", vocab_size=100)


@MODELS.member(Refused(r"size|shape|\d+"))
def width_of_another_size(folder: Path, zoo: Zoo) -> None:
    with_settings(folder, zoo, "config.json", intermediate_size=16)


@MODELS.member(Refused(r"nan|not finite|not a number"))
def weights_not_a_number(folder: Path, zoo: Zoo) -> None:
    with_weights(folder, zoo, lambda t: t["model.norm.weight"].fill_(float("nan")))


@MODELS.member(Refused(r"nan|inf|not finite|not a number"))
def one_weight_infinite(folder: Path, zoo: Zoo) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.o_proj.weight"][0, 0] = float("inf")

    with_weights(folder, zoo, spoil)


@MODELS.member(
    Refused(r"logits"),
    dict.fromkeys(("chat", "align", "score", "base"), Refused(r"not a number|nan|finite")),
)
def finite_weights_that_overflow(folder: Path, zoo: Zoo) -> None:
    def enlarge(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"].fill_(3e38)
        tensors["lm_head.weight"] *= 1e30

    with_weights(folder, zoo, enlarge)


# ------------------------------------------------------------------------------ other file formats


@MODELS.member(Refused(r"safetensors"))
def pickle_only(folder: Path, zoo: Zoo) -> None:
    import torch

    copied(folder, zoo)
    (folder / "model.safetensors").unlink()
    torch.save(brains.model(brains.plain_chain()).state_dict(), folder / "pytorch_model.bin")


@MODELS.member(Refused(r"safetensors"))
def no_weights(folder: Path, zoo: Zoo) -> None:
    (copied(folder, zoo) / "model.safetensors").unlink()


@MODELS.member(Refused(r"safetensors|weights|pointer|LFS"))
def pointer_instead_of_weights(folder: Path, zoo: Zoo) -> None:
    # What a clone without git-lfs leaves.
    (copied(folder, zoo) / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", "utf-8"
    )


@MODELS.member(Refused(r"config\.json|gguf|not a model"))
def gguf_file_only(folder: Path, zoo: Zoo) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "zorb.gguf").write_bytes(b"GGUF" + bytes(60))


@MODELS.member(Refused(r"config\.json"))
def config_of_endless_depth(folder: Path, zoo: Zoo) -> None:
    (copied(folder, zoo) / "config.json").write_text("[" * 200_000, "utf-8")


@MODELS.member(Refused(r"config\.json|JSON"))
def config_cut_off(folder: Path, zoo: Zoo) -> None:
    file = copied(folder, zoo) / "config.json"
    file.write_text(file.read_text("utf-8")[:50], "utf-8")


def quantized(folder: Path, zoo: Zoo, settings: Mapping[str, Any]) -> None:
    """Copy the plain member and call its weights quantized."""
    with_settings(folder, zoo, "config.json", quantization_config=settings)


@MODELS.member(Refused(r"gptq|quantiz"))
def gptq(folder: Path, zoo: Zoo) -> None:
    quantized(folder, zoo, {"quant_method": "gptq", "bits": 4, "group_size": 128})


@MODELS.member(Refused(r"awq|quantiz"))
def awq(folder: Path, zoo: Zoo) -> None:
    quantized(
        folder, zoo, {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"}
    )


@MODELS.member(Refused(r"bitsandbytes|quantiz"))
def bitsandbytes(folder: Path, zoo: Zoo) -> None:
    quantized(folder, zoo, {"quant_method": "bitsandbytes", "load_in_4bit": True})


@MODELS.member(Refused(r"compressed|quantiz"))
def compressed_tensors(folder: Path, zoo: Zoo) -> None:
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    quantized(folder, zoo, settings | {"config_groups": {}})


@MODELS.member(Refused(r"quantiz|fp8"))
def fine_grained_fp8(folder: Path, zoo: Zoo) -> None:
    quantized(folder, zoo, {"quant_method": "fp8", "weight_block_size": [128, 128]})


@MODELS.member(Refused(r"quantiz|mxfp4"))
def mxfp4(folder: Path, zoo: Zoo) -> None:
    quantized(folder, zoo, {"quant_method": "mxfp4"})


@MODELS.member(Refused(r"quantiz|zorbquant"))
def unknown_quantization(folder: Path, zoo: Zoo) -> None:
    quantized(folder, zoo, {"quant_method": "zorbquant"})
