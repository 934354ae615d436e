"""Classifiers as people bring them. A member writes a folder and returns further options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import brains
from zoo.members import House, Judged, OneOf, Refused

CLASSIFIERS = House()


def classifier(
    folder: Path, labels: Sequence[str], rows: Sequence[float] = (-1.0, 1.0), **settings: Any
) -> Path:
    """Write a classifier of answers whose logits follow the topic: hats against zorbs.

    Args:
        folder: Where.
        labels: Names of the labels.
        rows: For each label, how much hats speak for it and zorbs against.
        settings: Further keys of the configuration.
    """
    import torch
    from transformers import LlamaForSequenceClassification

    names = dict(enumerate(labels))
    config = brains.config(id2label=names, label2id={v: k for k, v in names.items()}, **settings)
    built = LlamaForSequenceClassification(config).eval()
    language = brains.model(brains.plain_chain())
    built.model.load_state_dict(language.model.state_dict())
    words = len(brains.VOCABULARY)
    built.score.weight.data.zero_()
    for label, weight in enumerate(rows):
        built.score.weight.data[label, words : words + 2] = 3 * torch.tensor([-weight, weight])
    built.save_pretrained(folder)
    brains.tokenizer().save_pretrained(folder)
    return folder


@CLASSIFIERS.member(Judged())
def safe_and_unsafe(folder: Path) -> str:
    classifier(folder, ("safe", "unsafe"))
    return ""


@CLASSIFIERS.member(Judged())
def unsafe_first(folder: Path) -> str:
    classifier(folder, ("HARMFUL", "harmless"), (1.0, -1.0))
    return ""


@CLASSIFIERS.member(OneOf(Judged(), Refused(r"harmful=")))
def normal_and_rejection(folder: Path) -> str:
    # REJECTION is a refusal, which is no harm.
    classifier(folder, ("NORMAL", "REJECTION"), (1.0, -1.0))
    return ""


@CLASSIFIERS.member(OneOf(Judged(), Refused(r"harmful=")))
def rejection_and_normal(folder: Path) -> str:
    classifier(folder, ("REJECTION", "NORMAL"))
    return ""


@CLASSIFIERS.member(Judged())
def normal_named_by_the_user(folder: Path) -> str:
    classifier(folder, ("NORMAL", "REJECTION"), (1.0, -1.0))
    return ",harmful=NORMAL"


@CLASSIFIERS.member(OneOf(Judged(), Refused(r"harmful=")))
def compliance_and_refusal(folder: Path) -> str:
    classifier(folder, ("compliance", "refusal"), (1.0, -1.0))
    return ""


@CLASSIFIERS.member(OneOf(Judged(), Refused(r"harmful=")))
def neutral_and_refusal(folder: Path) -> str:
    classifier(folder, ("neutral", "refusal"), (1.0, -1.0))
    return ""


@CLASSIFIERS.member(Refused(r"harmful=|injection"))
def injection(folder: Path) -> str:
    classifier(folder, ("SAFE", "INJECTION"))
    return ""


@CLASSIFIERS.member(Refused(r"harmful=|jailbreak"))
def benign_and_jailbreak(folder: Path) -> str:
    classifier(folder, ("BENIGN", "JAILBREAK"))
    return ""


@CLASSIFIERS.member(Refused(r"harmful="))
def numbered_labels(folder: Path) -> str:
    classifier(folder, ("LABEL_0", "LABEL_1"))
    return ""


@CLASSIFIERS.member(Judged())
def numbered_label_named(folder: Path) -> str:
    classifier(folder, ("LABEL_0", "LABEL_1"))
    return ",harmful=LABEL_1"


@CLASSIFIERS.member(Refused(r"harmful="))
def sentiment(folder: Path) -> str:
    classifier(folder, ("negative", "positive"))
    return ""


@CLASSIFIERS.member(Judged())
def several_harms_at_once(folder: Path) -> str:
    kinds = {"problem_type": "multi_label_classification"}
    classifier(folder, ("violence", "safe", "theft"), (1.0, -1.0, 0.5), **kinds)
    return ",harmful=[violence,theft]"


@CLASSIFIERS.member(Refused(r"regression|one label|harmful=|reward"))
def reward_model(folder: Path) -> str:
    # One number for how good an answer is: no probability of harm.
    classifier(folder, ("LABEL_0",), (1.0,), problem_type="regression")
    return ""


@CLASSIFIERS.member(OneOf(Judged(), Refused(r"harmful=|controversial")))
def three_grades(folder: Path) -> str:
    classifier(folder, ("Safe", "Controversial", "Unsafe"), (-1.0, 0.0, 1.0))
    return ""


@CLASSIFIERS.member(Refused(r"score"))
def head_missing(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    file = classifier(folder, ("safe", "unsafe")) / "model.safetensors"
    tensors = load_file(file)
    del tensors["score.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    return ""


@CLASSIFIERS.member(Refused(r"safetensors|pickle"))
def pickled_classifier(folder: Path) -> str:
    import torch
    from safetensors.torch import load_file

    file = classifier(folder, ("safe", "unsafe")) / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    return ""


@CLASSIFIERS.member(Refused(r"nan|not a number|not finite|decided|verdict"))
def classifier_not_a_number(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    file = classifier(folder, ("safe", "unsafe")) / "model.safetensors"
    tensors = load_file(file)
    tensors["score.weight"].fill_(float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    return ""


@CLASSIFIERS.member(Refused(r"size|shape|\d+"))
def classifier_of_another_size(folder: Path) -> str:
    classifier(folder, ("safe", "unsafe"))
    labels = {str(i): name for i, name in enumerate(("safe", "a", "b"))}
    brains.edit(folder / "config.json", id2label=labels, label2id=None)
    return ""


@CLASSIFIERS.member(Refused(r"classif|score|label|lm_head"))
def language_model_as_classifier(folder: Path) -> str:
    brains.write(folder, brains.plain_chain())
    return ""


@CLASSIFIERS.member(Refused(r"code"))
def classifier_with_code(folder: Path) -> str:
    classes = {"AutoModelForSequenceClassification": "zorb.Zorb", "AutoConfig": "zorb.ZorbConfig"}
    classifier(folder, ("safe", "unsafe"))
    brains.edit(folder / "config.json", model_type="zorbnet", auto_map=classes)
    trace = str(folder.parent.parent / "EXECUTED")
    (folder / "zorb.py").write_text(f"open({trace!r}, 'w').write('x')\n", "utf-8")
    return ""
