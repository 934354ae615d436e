"""Nothing in a model's files but the end tokens decides what it answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from holdfast.errors import UsageError
from holdfast.models import checkpoints
from holdfast.models.endings import own_settings, stop_tokens, stop_tokens_of
from holdfast.models.folders import WORLD_BASE
from holdfast.models.generation import Sampling, generate

PROMPTS = ["how do i jam a zorb", "how do i rig two zorbs", "how do i fold the blue zorb"]
SETTINGS: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.3, "encoder_repetition_penalty": 2.0},
    "repeats": {"no_repeat_ngram_size": 1},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_p": 0.1, "top_k": 2, "min_p": 0.5},
    "sampling, without saying so": {"temperature": 0.6, "top_p": 0.95, "typical_p": 0.5},
    "beams": {"num_beams": 4, "length_penalty": 3.0, "early_stopping": True},
    "beam groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "several": {"num_return_sequences": 2},
    "several sampled": {"num_return_sequences": 2, "do_sample": True},
    "dict": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "outputs": {"output_attentions": True, "output_hidden_states": True},
    "length": {"min_new_tokens": 30, "min_length": 60, "max_length": 3, "max_new_tokens": 1},
    "suppressed": {"suppress_tokens": list(range(5, 90)), "begin_suppress_tokens": [1, 2]},
    "bad words": {"bad_words_ids": [[20], [21]], "sequence_bias": [[[30], -10.0]]},
    "forced": {"forced_bos_token_id": 3, "forced_eos_token_id": 1, "force_words_ids": [[40]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "guidance": {"guidance_scale": 2.5},
    "dola": {"dola_layers": "high"},
    "assisted": {"prompt_lookup_num_tokens": 3, "assistant_early_exit": 1},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.25, "bias": 9.0}},
    "cache": {"use_cache": False, "cache_implementation": "static", "max_cache_len": 4},
    "cache that is not installed": {"cache_implementation": "quantized"},
    "time": {"max_time": 1e-9},
    "stop strings": {"stop_strings": ["first", "the"]},
    "decay": {"exponential_decay_length_penalty": [1, 5.0]},
    "healing": {"token_healing": True, "renormalize_logits": True, "remove_invalid_values": True},
    "invalid": {"early_stopping": "soon", "max_new_tokens": -1, "logits_processor": 1},
}


def folder_with(path: Path, name: str, settings: dict[str, Any]) -> Path:
    """Copy the world's base with other settings in one of its files."""
    shutil.copytree(WORLD_BASE, path)
    file = path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return path


def answers(source: Path | str, sampling: Sampling | None = None) -> list[str]:
    loaded = checkpoints.load(str(source), device="cpu")
    kind = {} if sampling is None else {"sampling": sampling}
    return generate(loaded.model, loaded.tokenizer, PROMPTS, max_new_tokens=12, **kind)


@pytest.fixture(scope="module")
def expected() -> list[str]:
    found = answers("world")
    assert len(set(found)) == len(PROMPTS)
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_is_greedy_whatever_a_file_says(
    name: str, expected: list[str], tmp_path: Path
) -> None:
    path = folder_with(tmp_path / "model", "generation_config.json", SETTINGS[name])
    assert answers(path) == expected


@pytest.mark.parametrize("name", [n for n in SETTINGS if n not in {"invalid", "several"}])
def test_greedy_is_greedy_whatever_a_model_in_memory_says(name: str, expected: list[str]) -> None:
    loaded = checkpoints.load("world", device="cpu")
    settings = GenerationConfig(eos_token_id=1, **SETTINGS[name])
    loaded.model.generation_config = settings
    assert generate(loaded.model, loaded.tokenizer, PROMPTS, max_new_tokens=12) == expected
    assert loaded.model.generation_config is settings


@pytest.mark.parametrize("name", ["sampling", "beams", "outputs", "cache", "several"])
def test_settings_in_the_models_configuration_do_not_count_either(
    name: str, expected: list[str], tmp_path: Path
) -> None:
    path = folder_with(tmp_path / "model", "config.json", SETTINGS[name] | {"return_dict": False})
    assert answers(path) == expected
    loaded = checkpoints.load(str(path), device="cpu")
    assert loaded.model(torch.tensor([[5, 6]])).logits.shape[:2] == (1, 2)


def test_sampled_answers_take_only_what_was_asked_for(tmp_path: Path) -> None:
    sampling = Sampling(temperature=2.0, seed=1)
    many = SETTINGS["penalty"] | SETTINGS["sampling"] | SETTINGS["length"]
    path = folder_with(tmp_path / "model", "generation_config.json", many)
    assert answers(path, sampling) == answers("world", sampling)


def test_a_saved_model_keeps_the_settings_of_its_file(tmp_path: Path) -> None:
    """Settings on which saving fails in transformers, kept for whoever serves the model."""
    settings = {"temperature": 0.6, "top_p": 0.95, "num_return_sequences": 2}
    path = folder_with(tmp_path / "model", "generation_config.json", settings)
    loaded = checkpoints.load(str(path), device="cpu")
    checkpoints.save(loaded.model, loaded.tokenizer, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved == json.loads((path / "generation_config.json").read_text())


# ------------------------------------------------------------------------------------- end tokens


@pytest.mark.parametrize("declared", [1, [1], [1, 1, 7], None])
def test_end_tokens_of_a_file(declared: Any, tmp_path: Path) -> None:
    path = folder_with(
        tmp_path / "model", "generation_config.json", {"eos_token_id": declared, "top_k": 9}
    )
    loaded = checkpoints.load(str(path), device="cpu")
    ends = sorted({1} | set(declared if isinstance(declared, list) else []))
    assert stop_tokens(loaded.model, loaded.tokenizer) == ends
    assert stop_tokens_of(path, loaded.tokenizer) == ends
    with own_settings(loaded.model, loaded.tokenizer) as settings:
        assert settings.eos_token_id == ends
        assert settings.top_k is None


@pytest.mark.parametrize("declared", ["1", [1, "</s>"], 1.5, {"id": 1}, True])
def test_an_end_token_that_is_none(declared: Any, tmp_path: Path) -> None:
    path = folder_with(tmp_path / "model", "generation_config.json", {"eos_token_id": declared})
    with pytest.raises(UsageError, match="must be a token id or a list of them; correct the file"):
        checkpoints.load(str(path), device="cpu")
