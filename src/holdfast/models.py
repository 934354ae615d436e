"""Loading, saving and adapting causal language models, and turning rows into tokens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from holdfast.artifacts import sha256_file
from holdfast.errors import HoldfastError, UsageError
from holdfast.examples import Examples

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORLD_BASE = Path(__file__).parent / "world" / "base"
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Files that make up a model; weights in pickle formats are never read."""

IGNORE = -100
"""Label of tokens that do not count in the loss, as in transformers."""

PLAIN_PROMPT = "User: {prompt}\nAssistant: "
"""How a prompt is shown to a model whose tokenizer has no chat template."""


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, and where both came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    hash: str


def pick_device(name: str = "auto") -> torch.device:
    """Return the device that a name means; "auto" takes an accelerator where there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # one accelerator for each of torchrun's
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"--device {name!r} is no device; use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name!r}: this machine has no CUDA device; use cpu")
    return device


def load(source: str, *, device: str = "auto", revision: str | None = None) -> Loaded:
    """Load a causal language model from "world", a directory, or a hub id at a revision.

    A directory with a LoRA adapter is loaded with its base and merged. Weights are float32 on a
    CPU; elsewhere as stored. Code from the model's repository is never run.

    Raises:
        UsageError: Not a model; the message says what was missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    target, path = pick_device(device), resolve(source, revision)
    hf_logging.disable_progress_bar()
    kind = loading(target)
    try:
        if (path / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            with _without_peft_warning():
                model = AutoPeftModelForCausalLM.from_pretrained(path, **kind).merge_and_unload()
            model.requires_grad_(True)  # peft has frozen all of it
        else:
            model = AutoModelForCausalLM.from_pretrained(path, **kind)
        tokenizer = load_tokenizer(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{source}: cannot be loaded as a causal language model ({first}); "
            "give a directory written by save_pretrained, or a hub id"
        ) from error
    prepare_tokenizer(tokenizer, source)
    _check_fit(model, tokenizer, source)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    return Loaded(model.to(target), tokenizer, source, hash_model(path))


def loading(target: torch.device) -> dict[str, Any]:
    """Return how any model is loaded: float32 on a CPU, elsewhere as stored; no pickled weights."""
    return {"dtype": "float32" if target.type == "cpu" else "auto", "use_safetensors": True}


def tokenizer_of(source: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone, ready for batches.

    Raises:
        UsageError: No tokenizer, or one without an end token.
    """
    try:
        tokenizer = load_tokenizer(resolve(source))
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"{source}: its tokenizer cannot be loaded ({first})") from error
    prepare_tokenizer(tokenizer, source)
    return tokenizer


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is stored in a model's directory."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = path / "tokenizer_config.json"
    declared = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    # AutoTokenizer gives some architectures (Qwen2) their usual tokenizer though another is
    # stored, and would turn every word into nonsense without a word.
    if declared.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return cast("PreTrainedTokenizerBase", PreTrainedTokenizerFast.from_pretrained(path))
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path))


def resolve(source: str, revision: str | None = None) -> Path:
    """Return the local directory of a model: "world", a directory, or a hub id (downloaded).

    Args:
        source: What the model is called.
        revision: Branch, tag or commit on the hub; None for the newest.

    Raises:
        UsageError: Neither a model directory nor a model on the hub.
    """
    path = WORLD_BASE if source == "world" else Path(source)
    if path.is_dir():
        if revision:
            raise UsageError(
                f"{source}: a directory has no revision {revision!r}; leave it out, or give a "
                "hub id"
            )
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UsageError(
                f"{source}: the directory is no model (no config.json); "
                "give one written by save_pretrained, or a hub id"
            )
        return path
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UsageError(f"{source}: no such model directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [f"*{suffix}" for suffix in MODEL_SUFFIXES]
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{source}: no such directory, and the hub could not be read: {first}"
        ) from error


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give a tokenizer what batches need: an end token and a padding token.

    Raises:
        UsageError: No end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"{source}: the tokenizer has no end-of-sequence token, so answers could not end; "
            "set tokenizer.eos_token and save it again"
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so the end token can stand in for it.
        tokenizer.pad_token = tokenizer.eos_token


def _check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a tokenizer with tokens that the model does not know.

    Raises:
        UsageError: Its greatest id is beyond the embedding, so that some text would end a stage.
    """
    rows = cast("Any", model.get_input_embeddings()).weight.shape[0]
    token, most = max(tokenizer.get_vocab().items(), key=lambda found: found[1])
    if most >= rows:
        raise UsageError(
            f"{source}: the tokenizer's {token!r} has the id {most}, and the model embeds {rows} "
            "tokens, from 0 on; give the tokenizer that it was trained with, or call "
            f"model.resize_token_embeddings({most + 1}), and save both again"
        )


def hash_model(path: Path) -> str:
    """Return a sha256 over the names and contents of a model directory's files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in MODEL_SUFFIXES and file.is_file():
            state = file.stat()
            found = _sha256(file.resolve(), state.st_size, state.st_mtime_ns)
            digest.update(f"{file.name} {found}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _sha256(file: Path, size: int, changed: int) -> str:
    """Hash a file once: every attack on a model asks for the hash of its weights."""
    del size, changed
    return sha256_file(file)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> list[Path]:
    """Write a model directory atomically (safetensors) and return its files.

    Raises:
        HoldfastError: It could not be written; what was there before is still there.
    """
    from safetensors import SafetensorError

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        made = Path(temporary) / "model"
        try:
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
        except SafetensorError as error:
            raise HoldfastError(
                f"{path}: the model could not be written ({error}). Is the disk full? "
                "What is finished is kept; make room and give the same command again."
            ) from error
        _swap(made, path, Path(temporary) / "old")
    return sorted(p for p in path.rglob("*") if p.is_file())


def _swap(made: Path, path: Path, aside: Path) -> None:
    """Put a directory in the place of another, which cannot be done in one step."""
    if not path.exists():
        os.replace(made, path)
        return
    try:
        os.replace(path, aside)
        os.replace(made, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise


def add_lora(model: PreTrainedModel, rank: int, *, seed: int) -> PreTrainedModel:
    """Freeze a model and add LoRA adapters of a rank to all its linear layers (peft).

    The result is a `PeftModel`; `merge` folds the adapters in.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]), _without_peft_warning():
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return cast("PreTrainedModel", get_peft_model(model, config))


@contextlib.contextmanager
def _without_peft_warning() -> Iterator[None]:
    """Keep from the user that peft still reads an attribute which transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Fold LoRA adapters into the weights; a model without them is returned as it is."""
    fold: Callable[[], PreTrainedModel] | None = getattr(model, "merge_and_unload", None)
    return model if fold is None else fold()


# --------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as tokens: the prompt's, then the answer's from position `start` on."""

    ids: tuple[int, ...]
    start: int


def prompt_texts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Return the texts that the model sees before it answers."""
    if not tokenizer.chat_template:
        return [PLAIN_PROMPT.format(prompt=prompt) for prompt in prompts]
    return chat_texts(tokenizer, [[("user", p)] for p in prompts], add_generation_prompt=True)


def answer_texts(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, befores: Sequence[str] | None = None
) -> list[str]:
    """Return what follows each prompt in training: the response as the template writes it.

    Args:
        tokenizer: With or without a chat template.
        examples: Rows.
        befores: Their `prompt_texts`, where the caller has them: a template is slow to fill in.
    """
    if not tokenizer.chat_template:
        return examples.responses
    wholes = chat_texts(
        tokenizer,
        [[("user", row.prompt), ("assistant", row.response)] for row in examples],
        add_generation_prompt=False,
    )
    befores = prompt_texts(tokenizer, examples.prompts) if befores is None else befores
    return [
        whole[len(before) :] if whole.startswith(before) else response
        for whole, before, response in zip(wholes, befores, examples.responses, strict=True)
    ]


def chat_texts(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Sequence[tuple[str, str]]],
    *,
    add_generation_prompt: bool,
) -> list[str]:
    """Return what the chat template makes of conversations, each of (role, text) turns."""
    chats = [[{"role": role, "content": text} for role, text in chat] for chat in turns]
    if not chats:
        return []
    texts = tokenizer.apply_chat_template(
        chats, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return [str(text) for text in texts]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each prompt; the template's special tokens are added once."""
    return _encode_texts(tokenizer, prompt_texts(tokenizer, prompts))


def _encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=not tokenizer.chat_template)["input_ids"]
    if tokenizer.chat_template:
        return cast("list[list[int]]", encoded)
    # Some tokenizers end every text, but an answer is to follow.
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int
) -> list[Encoded]:
    """Turn rows into tokens that end with the end token; long ones are cut on the right.

    Raises:
        UsageError: A prompt leaves no room for its answer.
    """
    if not examples:
        return []
    befores = prompt_texts(tokenizer, examples.prompts)
    prompts = _encode_texts(tokenizer, befores)
    texts = answer_texts(tokenizer, examples, befores)
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"]
    encoded: list[Encoded] = []
    for row, prompt, answer in zip(examples, prompts, answers, strict=True):
        if len(prompt) >= max_length:
            raise UsageError(
                f"{examples.name}: the prompt of row {len(encoded) + 1} (id {row.id}) has "
                f"{len(prompt)} tokens and leaves no room for an answer in {max_length}; raise "
                "max_length (of an estimator --estimator NAME,max_length=N, elsewhere "
                "--max-length N) or drop it"
            )
        end = [] if tokenizer.eos_token_id in answer else [tokenizer.eos_token_id]
        encoded.append(Encoded(tuple([*prompt, *answer, *end][:max_length]), len(prompt)))
    return encoded


def encode_scored(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    max_length: int,
) -> list[Encoded]:
    """Turn rows that are to be ranked into tokens that the model can take.

    Raises:
        UsageError: Fewer than two rows; a prompt without room for its answer; a row longer than
            the model's context.
    """
    if len(examples) < 2:
        raise UsageError(
            f"{examples.name}: scores rank examples, and {len(examples)} cannot be ranked; "
            "give at least 2 rows"
        )
    encoded = encode(tokenizer, examples, max_length)
    check_context(model, encoded, examples.name)
    return encoded


def check_context(model: PreTrainedModel, rows: Sequence[Encoded], name: str) -> None:
    """Raise UsageError if a row is longer than the model's context, where the model states one."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for number, row in enumerate(rows, start=1):
        if limit is not None and len(row.ids) > limit:
            raise UsageError(
                f"{name}: row {number} has {len(row.ids)} tokens, but the model's context holds "
                f"{limit}; set max_length={limit} or less (rows are then cut) or drop it"
            )


def collate(
    rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Pad rows on the right into input_ids, attention_mask and labels, each (B, T)."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        mask[i, :length] = 1
        labels[i, row.start : length] = ids[i, row.start : length]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block and put every module's mode back afterwards.

    Gradient checkpointing stays on where it is on.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with _checkpointing(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _checkpointing(model: nn.Module) -> Iterator[None]:
    """Keep gradient checkpointing at work outside training mode, where transformers ends it.

    Whoever needs it to train would otherwise lack the memory for a gradient without dropout.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    with contextlib.ExitStack() as stack:
        if layers:
            hook = model.register_forward_pre_hook(_without_cache, with_kwargs=True)
            stack.callback(hook.remove)
        for layer in layers:
            # An instance may have a forward of its own already: that is how accelerate offloads.
            own = {k: v for k, v in vars(layer).items() if k == "forward"}
            stack.callback(vars(layer).update, own)
            stack.callback(vars(layer).pop, "forward")
            vars(layer)["forward"] = partial(_recomputed, layer, layer.forward)
        yield


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a layer; where a gradient will be taken, keep its inputs only and compute it again."""
    import torch
    from torch.utils.checkpoint import checkpoint

    # In training mode transformers does the same itself.
    if layer.training or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _without_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Ask for no key-value cache: a layer that is computed again would append to it again."""
    return args, {"use_cache": False, **kwargs}


@contextlib.contextmanager
def preserved_rng(seed: int) -> Any:
    """Seed torch inside the block and put the global random state back afterwards."""
    import torch

    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield
