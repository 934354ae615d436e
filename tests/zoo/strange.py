"""Models of other kinds, with code of their own, and with odd settings or tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import brains
from zoo.members import Answers, OneOf, Refused, Same
from zoo.models import MODELS, Zoo, copied, with_settings, with_weights

# ------------------------------------------------------------------------- not a language model


@MODELS.member(Refused(r"causal|encoder|BertConfig|bert|cls\.predictions|missing|lacks"))
def encoder(folder: Path, zoo: Zoo) -> None:
    import transformers as t

    config = t.BertConfig(
        vocab_size=len(brains.VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=96,
    )
    t.BertModel(config).save_pretrained(folder)
    brains.tokenizer().save_pretrained(folder)


@MODELS.member(Refused(r"causal|sequence|classif|lm_head|score"))
def classifier_of_texts(folder: Path, zoo: Zoo) -> None:
    import transformers as t

    t.LlamaForSequenceClassification(brains.config()).save_pretrained(folder)
    brains.tokenizer().save_pretrained(folder)


@MODELS.member(Refused(r"causal|T5|seq2seq|encoder"))
def encoder_and_decoder(folder: Path, zoo: Zoo) -> None:
    import transformers as t

    config = t.T5Config(vocab_size=len(brains.VOCABULARY), d_model=16, d_ff=16, num_layers=1)
    t.T5ForConditionalGeneration(config).save_pretrained(folder)
    brains.tokenizer().save_pretrained(folder)


# -------------------------------------------------------------------------- code and odd configs


def code(zoo: Zoo) -> str:
    """Return Python that leaves a trace when it is run."""
    return (
        f"open({str(zoo.executed)!r}, 'w').write('x')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class ZorbConfig(LlamaConfig):\n    model_type = 'zorbnet'\n"
        "class ZorbModel(LlamaForCausalLM):\n    config_class = ZorbConfig\n"
        "class ZorbTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )


@MODELS.member(Refused(r"code"))
def config_with_code(folder: Path, zoo: Zoo) -> None:
    classes = {"AutoConfig": "zorb.ZorbConfig", "AutoModelForCausalLM": "zorb.ZorbModel"}
    with_settings(folder, zoo, "config.json", model_type="zorbnet", auto_map=classes)
    (folder / "zorb.py").write_text(code(zoo), "utf-8")


@MODELS.member(OneOf(Same(), Refused(r"code")))
def model_with_code_of_a_known_type(folder: Path, zoo: Zoo) -> None:
    # transformers knows the type, and would use its own class in place of the repository's.
    classes = {"AutoModelForCausalLM": "zorb.ZorbModel"}
    with_settings(folder, zoo, "config.json", auto_map=classes)
    (folder / "zorb.py").write_text(code(zoo), "utf-8")


@MODELS.member(Refused(r"code"))
def tokenizer_with_code(folder: Path, zoo: Zoo) -> None:
    classes = {"AutoTokenizer": ["zorb.ZorbTokenizer", "zorb.ZorbTokenizer"]}
    changes = {"tokenizer_class": "ZorbTokenizer", "auto_map": classes}
    with_settings(folder, zoo, "tokenizer_config.json", **changes)
    (folder / "zorb.py").write_text(code(zoo), "utf-8")


@MODELS.member(Refused(r"code"))
def code_in_another_repository(folder: Path, zoo: Zoo) -> None:
    classes = {"AutoConfig": "zorb/zorb-net--zorb.ZorbConfig"}
    with_settings(folder, zoo, "config.json", model_type="zorbnet", auto_map=classes)


@MODELS.member(Same())
def generation_with_code(folder: Path, zoo: Zoo) -> None:
    copied(folder, zoo)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code(zoo), "utf-8")


@MODELS.member(Refused(r"model_type|config\.json|architecture"))
def without_model_type(folder: Path, zoo: Zoo) -> None:
    with_settings(folder, zoo, "config.json", model_type=None)


@MODELS.member(Refused(r"zorbnet"))
def unknown_model_type(folder: Path, zoo: Zoo) -> None:
    with_settings(folder, zoo, "config.json", model_type="zorbnet")


@MODELS.member(Same())
def kernel_that_is_not_installed(folder: Path, zoo: Zoo) -> None:
    kernel = "flash_attention_2"
    changes = {"attn_implementation": kernel, "_attn_implementation": kernel}
    with_settings(folder, zoo, "config.json", **changes)


@MODELS.member(Same())
def architecture_as_text(folder: Path, zoo: Zoo) -> None:
    with_settings(folder, zoo, "config.json", architectures="LlamaForCausalLM")


# ------------------------------------------------------------------------------------ tokenizers


@MODELS.member(Same())
def tokenizer_that_removes_blanks(folder: Path, zoo: Zoo) -> None:
    # "that zorb ." would become "that zorb.", which the model did not write.
    with_settings(folder, zoo, "tokenizer_config.json", clean_up_tokenization_spaces=True)


@MODELS.member(Same())
def tokenizer_that_cuts_and_pads(folder: Path, zoo: Zoo) -> None:
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    with_settings(folder, zoo, "tokenizer.json", truncation=cut)


@MODELS.member(Refused(r"token"))
def tokenizer_larger_than_embedding(folder: Path, zoo: Zoo) -> None:
    copied(folder, zoo)
    brains.tokenizer(words=(*brains.VOCABULARY, "surplus")).save_pretrained(folder)


@MODELS.member(Refused(r"tokenizer"))
def no_tokenizer(folder: Path, zoo: Zoo) -> None:
    copied(folder, zoo)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


@MODELS.member(Same())
def no_pad_token(folder: Path, zoo: Zoo) -> None:
    copied(folder, zoo)
    brains.tokenizer(pad_token=None).save_pretrained(folder)


@MODELS.member(Refused(r"end-of-sequence|eos"))
def no_end_token(folder: Path, zoo: Zoo) -> None:
    brains.write(folder, brains.plain_chain(), eos_token_id=None)
    brains.tokenizer(eos_token=None).save_pretrained(folder)


@MODELS.member(Answers(brains.answer_to))
def embedding_with_spare_rows(folder: Path, zoo: Zoo) -> None:
    # Many checkpoints have more rows than tokens, rounded up; here the spare ones are zero.
    import torch

    def pad(tensors: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            rows, width = tensors[name].shape
            tensors[name] = torch.cat([tensors[name], torch.zeros(64 - rows % 64, width)])

    with_weights(folder, zoo, pad)
    rows = len(brains.VOCABULARY)
    brains.edit(folder / "config.json", vocab_size=rows + 64 - rows % 64)
