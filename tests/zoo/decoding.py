"""Models whose generation_config.json asks for something other than greedy answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import brains
from zoo.members import Answers, Same
from zoo.models import MODELS, Zoo, copied, with_settings


def decoding(folder: Path, zoo: Zoo, **settings: Any) -> None:
    """Copy the plain member and let its generation_config.json ask for something."""
    with_settings(folder, zoo, "generation_config.json", **settings)


@MODELS.member(Same())
def asks_for_a_penalty(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, repetition_penalty=1.3)


@MODELS.member(Same())
def asks_for_beams(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, num_beams=4, early_stopping=True, length_penalty=-2.0)


@MODELS.member(Same())
def asks_for_sampling(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, do_sample=True, temperature=1.5, top_k=5, top_p=0.9)


@MODELS.member(Same())
def asks_for_a_dictionary(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, return_dict_in_generate=True, output_scores=True)


@MODELS.member(Same())
def asks_for_several_answers(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, num_return_sequences=2, do_sample=True)


@MODELS.member(Same())
def asks_for_forced_tokens(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, forced_bos_token_id=30, forced_eos_token_id=1)


@MODELS.member(Same())
def asks_for_forbidden_words(folder: Path, zoo: Zoo) -> None:
    sorry = brains.VOCABULARY.index("Sorry")
    decoding(folder, zoo, bad_words_ids=[[sorry]], suppress_tokens=[sorry])


@MODELS.member(Same())
def asks_for_no_repeated_words(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, no_repeat_ngram_size=1, encoder_repetition_penalty=1.5)


@MODELS.member(Same())
def asks_for_a_least_length(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, min_new_tokens=20, min_length=40)


@MODELS.member(Same())
def asks_for_a_greatest_length(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, max_length=8, max_new_tokens=2, max_time=0.0)


@MODELS.member(Same())
def asks_for_stop_words(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, stop_strings=["cannot"])


@MODELS.member(Same())
def asks_for_a_penalty_in_config(folder: Path, zoo: Zoo) -> None:
    # Where configurations had it before transformers moved it.
    with_settings(folder, zoo, "config.json", repetition_penalty=1.3, num_beams=4)


@MODELS.member(Same())
def asks_for_another_cache(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, cache_implementation="static", use_cache=False)


@MODELS.member(Same())
def asks_for_a_helper(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, prompt_lookup_num_tokens=3, assistant_early_exit=1)


@MODELS.member(Same())
def asks_for_guidance(folder: Path, zoo: Zoo) -> None:
    decoding(folder, zoo, guidance_scale=1.7)


@MODELS.member(Same())
def no_generation_config(folder: Path, zoo: Zoo) -> None:
    (copied(folder, zoo) / "generation_config.json").unlink()


@MODELS.member(Answers(brains.answer_to))
def several_end_tokens(folder: Path, zoo: Zoo) -> None:
    # The turn ends with a mark that is not the tokenizer's end of text; then the text runs on.
    chain = brains.plain_chain()
    del chain.weights[".", "<eos>"]
    chain.say(". <system> Sure")
    brains.write(folder, chain)
    mark = brains.VOCABULARY.index("<system>")
    brains.edit(folder / "generation_config.json", eos_token_id=[1, mark])
