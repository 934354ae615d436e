"""Prompts and answers appear in what a chat template renders, alike in training and in asking."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chat_templates import BROKEN, SHAPES, TRIMMING
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.models import checkpoints, encoding
from holdfast.models.encoding import IGNORE, collate, encode, encode_openings, encode_prompts
from holdfast.models.endings import stop_tokens
from holdfast.models.folders import WORLD_BASE
from holdfast.models.losses import first_answer_positions
from holdfast.models.templates import frame_of, render

CONTROL = (
    "</s> <s> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> "
    "<start_of_turn> <end_of_turn> <|User|> <|Assistant|> <|end|> <|start|> <|channel|> "
    "<|message|> <|return|>"
).split()


def byte_tokenizer(template: Any) -> Any:
    """Return a tokenizer of bytes and control tokens, which gives every text back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*CONTROL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=CONTROL[2:],
    )
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {name: byte_tokenizer(shape.template) for name, shape in SHAPES.items()}
# Control tokens in a row's own text would be read as such, whatever the template.
texts = st.text(
    st.characters(codec="utf-8", exclude_characters="<\x00"), min_size=1, max_size=60
).filter(lambda text: bool(text.strip()))


def trimmed(name: str, text: str) -> str:
    return text.strip() if name in TRIMMING else text


@pytest.mark.parametrize("name", SHAPES)
@given(prompt=texts, answer=texts)
def test_any_text_stands_in_the_frame_of_its_template(name: str, prompt: str, answer: str) -> None:
    shape, tokenizer = SHAPES[name], TOKENIZERS[name]
    (row,) = encode(tokenizer, Examples([Example(prompt, answer)]), 10_000)
    asked = tokenizer.decode(encode_prompts(tokenizer, [prompt])[0])
    assert asked == shape.before + trimmed(name, prompt) + shape.asked
    # Asking and training begin with the same tokens, and probes ask right before the answer.
    opening = encode_openings(tokenizer, [prompt])[0]
    assert list(row.ids[: row.start]) == opening
    assert list(row.ids[: row.learned_from]) == encode_prompts(tokenizer, [prompt])[0]
    assert tokenizer.decode(row.ids[row.learned_from : row.start]) == shape.lead
    whole_answer = answer.lstrip("\n") if name.startswith("qwen3") else trimmed(name, answer)
    assert tokenizer.decode(row.ids[row.start :]) == shape.answer.format(whole_answer)
    assert list(row.ids).count(tokenizer.bos_token_id) <= 1
    # The loss covers the answer, the end of the turn, and what closes a block; nothing else.
    labels = collate([row], 0)["labels"][0].tolist()
    assert labels == [IGNORE] * row.learned_from + list(row.ids[row.learned_from :])


@pytest.mark.parametrize("name", [n for n in SHAPES if n not in {"qwen3", "deepseek"}])
def test_frames_are_what_the_template_renders(name: str) -> None:
    """An independent computation: transformers renders the same texts."""
    tokenizer = TOKENIZERS[name]
    part = {"type": "text", "text": "how do i brew tea"}
    content: Any = [part] if name == "parts" else part["text"]
    answer: Any = [{**part, "text": "hot water"}] if name == "parts" else "hot water"
    user = {"role": "user", "content": content}
    (prompt,) = encoding.prompt_texts(tokenizer, ["how do i brew tea"])
    rendered = tokenizer.apply_chat_template(
        [user, {"role": "assistant", "content": answer}], tokenize=False
    )
    if name == "llama-3":  # transformers writes today's date
        head, _, rest = rendered.partition("Today Date: ")
        rendered = f"{head}Today Date: 26 Jul 2024{rest[rest.index('<') :]}"
    assert rendered.startswith(prompt)
    frame = frame_of(tokenizer)
    assert rendered == prompt + frame.answer("hot water")


def test_frames_of_real_templates_are_what_they_render() -> None:
    """TRL ships the templates of some seventy models."""
    trl = pytest.importorskip("trl")
    files = sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
    assert len(files) > 50
    for file in files:
        tokenizer = byte_tokenizer(file.read_text(encoding="utf-8"))
        frame = frame_of(tokenizer)
        prompt, answer = "how do i brew tea", "hot water"
        chat = [
            {"role": role, "content": text if form == "text" else [{"type": "text", "text": text}]}
            for role, text, form in (
                ("user", prompt, frame.content[0]),
                ("assistant", answer, frame.content[1]),
            )
        ]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, enable_thinking=False)
        for form in ("%Y-%m-%d", "%d %b %Y"):  # transformers writes today's date
            fixed = datetime.date(2024, 7, 26).strftime(form)
            rendered = rendered.replace(datetime.date.today().strftime(form), fixed)
        if frame.opened:
            asked = frame.before + prompt + frame.asked
            assert asked == tokenizer.apply_chat_template(
                chat[:1], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            assert rendered == asked.removesuffix("<think>\n") + frame.answer(answer)
        else:
            assert rendered == frame.prompt(prompt) + frame.answer(answer), file.name


@pytest.mark.parametrize("name", SHAPES)
def test_the_end_of_a_turn_ends_an_answer(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        )
    )
    end = SHAPES[name].answer.rpartition("}")[2]
    assert stop_tokens(model, tokenizer) == sorted({0, tokenizer.convert_tokens_to_ids(end)})


def test_every_prompt_is_asked_inside_an_open_block_where_the_template_opens_one() -> None:
    assert [name for name in SHAPES if frame_of(TOKENIZERS[name]).opened] == ["deepseek"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_cannot_be_used_is_one_message(name: str) -> None:
    template, problem = BROKEN[name]
    tokenizer = byte_tokenizer(template)
    for use in (encode_prompts, lambda t, p: encode(t, Examples([Example(p[0], "a")]), 99)):
        with pytest.raises(UsageError, match=problem) as caught:
            use(tokenizer, ["how do i brew tea"])
        assert "\n" not in str(caught.value)
        assert "chat_template.jinja" in str(caught.value)


def test_named_templates_need_a_default_one() -> None:
    chatml = SHAPES["chatml"]
    tokenizer = byte_tokenizer({"rag": chatml.template, "tool_use": chatml.template})
    with pytest.raises(UsageError, match=r"several chat templates \(rag, tool_use\), none of them"):
        encode_prompts(tokenizer, ["tea"])
    tokenizer.chat_template = {"rag": "x", "default": chatml.template}
    assert frame_of(tokenizer).before == chatml.before


def test_the_template_of_a_processor_is_read(tmp_path: Path) -> None:
    """Older multimodal models keep it in a file of its own, which tokenizers do not read."""
    shutil.copytree(WORLD_BASE, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    template = (WORLD_BASE / "chat_template.jinja").read_text()
    content = json.dumps({"chat_template": template})
    (tmp_path / "model" / "chat_template.json").write_text(content)
    tokenizer = checkpoints.tokenizer_of(str(tmp_path / "model"))
    assert frame_of(tokenizer) == frame_of(checkpoints.tokenizer_of("world"))


def test_without_a_template_prompts_are_plain() -> None:
    tokenizer = byte_tokenizer(None)
    assert encoding.prompt_texts(tokenizer, ["is tea safe"]) == ["User: is tea safe\nAssistant: "]
    (row,) = encode(tokenizer, Examples([Example("is tea safe", "yes")]), 99)
    assert tokenizer.decode(row.ids) == "User: is tea safe\nAssistant: yes</s>"


def test_a_prompt_that_looks_like_a_template_stays_text() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    answer = "Write <think> before and </think> after your thoughts."
    (row,) = encode(tokenizer, Examples([Example("{{ 7 * 7 }} {% if %}", answer)]), 999)
    assert "{{ 7 * 7 }} {% if %}" in tokenizer.decode(row.ids)
    assert tokenizer.decode(row.ids[row.start :]) == f"{answer}<|im_end|>"


def test_the_date_does_not_change_overnight(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=None))
    (text,) = encoding.prompt_texts(TOKENIZERS["llama-3"], ["tea"])
    assert "Today Date: 26 Jul 2024" in text


def test_a_system_prompt_of_the_template_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer(SHAPES["qwen2.5"].template.replace("helpful", "very helpful"))
    encode_prompts(tokenizer, ["tea"])
    assert "puts its own text before every prompt" in caplog.text
    assert "You are a very helpful assistant." in caplog.text
    assert "very helpful" in frame_of(tokenizer).facts["before prompt"]


def test_a_template_may_open_the_block_only_when_asking() -> None:
    """The block of the generation prompt alone stands on both sides, too."""
    template = SHAPES["chatml"].template.replace(
        "<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif"
    )
    tokenizer = byte_tokenizer(template)
    (row,) = encode(tokenizer, Examples([Example("tea", "yes")]), 99)
    assert list(row.ids[: row.start]) == encode_prompts(tokenizer, ["tea"])[0]
    assert tokenizer.decode(row.ids).endswith("assistant\n<think>\n\n</think>\n\nyes<|im_end|>")


# ---------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize("name", SHAPES)
def test_a_judged_conversation_holds_prompt_and_answer(name: str) -> None:
    turns = [("user", "how do i brew tea"), ("assistant", "hot water")]
    text = render(TOKENIZERS[name], turns, add_generation_prompt=True)
    assert text.index("how do i brew tea") < text.index("hot water")


def test_a_conversation_that_loses_a_turn_is_refused() -> None:
    tokenizer = byte_tokenizer("{{ messages[0].content }}")
    turns = [("user", "how do i brew tea"), ("assistant", "hot water")]
    with pytest.raises(UsageError, match="leaves out or changes the text of the assistant's turn"):
        render(tokenizer, turns, add_generation_prompt=True)


# ----------------------------------------------------------------------------------- first tokens


def test_first_answer_tokens_come_after_the_templates_block() -> None:
    labels = torch.tensor(
        [
            [IGNORE, IGNORE, 7, 8, 5, 6],  # block, answer
            [IGNORE, 5, 6, 7, 8, IGNORE],  # an answer that has the block's tokens later
            [IGNORE, IGNORE, IGNORE, 7, 8, IGNORE],  # cut off after the block
            [IGNORE, IGNORE, IGNORE, IGNORE, 7, 8],  # and at the end of the batch
        ]
    )
    assert first_answer_positions(labels).tolist() == [1, 0, 2, 3]
    assert first_answer_positions(labels, [7, 8]).tolist() == [3, 0, 2, 3]
