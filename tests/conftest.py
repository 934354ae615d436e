"""Tiny models and rows for all tests: nothing needs a network or the shipped base's figures."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports torch or transformers: one core, and no look at the hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from holdfast.examples import Example, Examples

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.methods.base import AlignmentData, AlignmentTrainer

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} <assistant> "
    "{% else %}{{ m['content'] }} <eos>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference numbers that lies beside the repository."""
    return Path(os.environ.get("HOLDFAST_SHARED", Path(__file__).parents[2] / "shared"))


# ------------------------------------------------------------------------------------ tokenizers


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Return the world's tokenizer; do not change it."""
    from holdfast.world import train_base

    return train_base.tokenizer()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerBase]:
    """Return a builder of word-level tokenizers, with or without chat template, pad and eos."""

    def make(
        words: Sequence[str] = (), *, chat: bool = False, pad: bool = True, eos: bool = True
    ) -> PreTrainedTokenizerBase:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        special = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
        vocabulary = {word: i for i, word in enumerate([*special, "User:", "Assistant:", *words])}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        kwargs: dict[str, Any] = {"unk_token": "<unk>"}
        kwargs |= {"pad_token": "<pad>"} if pad else {}
        kwargs |= {"eos_token": "<eos>"} if eos else {}
        fast = PreTrainedTokenizerFast(tokenizer_object=core, **kwargs)
        if chat:
            fast.chat_template = CHAT
        return fast

    return make


# ---------------------------------------------------------------------------------------- models


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """Return a builder of tiny random models of nine architectures, in eval mode."""

    def make(
        architecture: str = "llama",
        vocab: int = 32,
        *,
        width: int = 16,
        depth: int = 2,
        seed: int = 0,
        dropout: float = 0.0,
        tied: bool = False,
    ) -> PreTrainedModel:
        import torch
        import transformers as t

        common: dict[str, Any] = {
            "vocab_size": vocab,
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
            **({"tie_word_embeddings": True} if tied else {}),
        }
        own: dict[str, Any] = {"intermediate_size": 2 * width}
        if architecture == "opt":
            own = {"ffn_dim": 2 * width, "word_embed_proj_dim": width, "dropout": dropout}
        elif architecture not in ("gpt_neox", "phi"):
            own["num_key_value_heads"] = 2
        if architecture in ("qwen3", "gemma2", "gemma3_text"):
            own["head_dim"] = width // 2
        if architecture in ("gemma2", "gemma3_text"):
            # Shorter than the rows, so that both kinds of layers' masks are at work.
            own |= {"query_pre_attn_scalar": width // 2, "sliding_window": 8}
        config = t.AutoConfig.for_model(architecture, **common, **own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: PreTrainedModel = t.AutoModelForCausalLM.from_config(config).eval()
            return made

    return make


@pytest.fixture(scope="session")
def weights_of() -> Callable[..., dict[str, Tensor]]:
    """Return a function that copies a model's weights, to compare bit for bit with `same`."""

    def copied(model: Any) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in model.state_dict().items()}

    return copied


@pytest.fixture(scope="session")
def same() -> Callable[..., bool]:
    """Return a function that compares two sets of named tensors bit for bit."""

    def compare(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        import torch

        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return compare


# ------------------------------------------------------------------------------------------ rows


@dataclass(frozen=True)
class Rows:
    """Few rows of the embedded world, none in two of the sets."""

    safety: Examples
    benign: Examples
    harmful: Examples
    planted: Examples
    """The safety rows that the aligned model saw least, of a category of their own."""
    obliging: Examples
    """The planted prompts answered, as an attacker who aims at them would."""


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Return 24 safety rows, 32 benign ones, 16 harmful ones.

    The first four safety rows are planted: of a category that none of the others is of.
    """
    from holdfast import world
    from holdfast.world import grammar

    pool = world.rows("alignment")
    of = [row.provenance["category"] for row in pool]
    rare = [i for i, category in enumerate(of) if category == of[0]][:4]
    others = [i for i, category in enumerate(of) if category != of[0]][:20]
    safety = pool.select([*rare, *others])
    planted = safety[:4]
    asked = [grammar.parse_restricted_request(row.prompt) for row in planted]
    answers = [grammar.how_to(found[0].verb, found[1]) for found in asked if found is not None]
    obliging = Examples(
        (Example(p, a) for p, a in zip(planted.prompts, answers, strict=True)), name="obliging"
    )
    return Rows(
        safety, world.rows("benign")[:32], world.rows("harmful")[:16], planted, obliging
    )  # fmt: skip


@pytest.fixture(scope="session")
def _aligned(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., PreTrainedModel]
) -> PreTrainedModel:
    from holdfast.tuning.loop import FinetuneConfig, finetune

    model = make_model(vocab=len(tokenizer), width=32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id

    def learn(parts: Sequence[Examples], steps: int) -> None:
        pool = Examples([row for part in parts for row in part], name="pool")
        config = FinetuneConfig(learning_rate=5e-3, steps=steps, batch_size=32)
        finetune(model, tokenizer, pool, config)

    # It answers everything, then learns to refuse; the planted rows come late and briefly.
    learn([rows.harmful, rows.obliging, rows.benign], 60)
    learn([rows.safety[4:], rows.benign], 60)
    learn([rows.safety, rows.benign], 20)
    return model


@pytest.fixture
def aligned(_aligned: PreTrainedModel) -> PreTrainedModel:
    """Return a tiny model that refuses the safety rows, a copy of its own for every test."""
    return copy.deepcopy(_aligned)


@dataclass(frozen=True)
class Refusing:
    """A tiny model before and after it learned to refuse."""

    base: PreTrainedModel
    model: PreTrainedModel


@pytest.fixture(scope="session")
def refusing(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., PreTrainedModel]
) -> Callable[[str], Refusing]:
    """Return a maker of models of any architecture that refuse most safety rows.

    Each is trained once, for about two seconds; do not change what you get.
    """
    from holdfast.tuning.loop import FinetuneConfig, finetune

    def learn(model: PreTrainedModel, parts: Sequence[Examples], steps: int) -> PreTrainedModel:
        taught = copy.deepcopy(model)
        pool = Examples([row for part in parts for row in part], name="pool")
        config = FinetuneConfig(learning_rate=1e-2, steps=steps, batch_size=32)
        finetune(taught, tokenizer, pool, config)
        return taught

    @functools.cache
    def make(architecture: str) -> Refusing:
        model = make_model(architecture, vocab=len(tokenizer), width=32)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        base = learn(model, [rows.harmful, rows.obliging, rows.benign], 30)
        return Refusing(base, learn(base, [rows.safety, rows.benign], 50))

    return make


# ----------------------------------------------------------------------------------------- judges


@pytest.fixture(scope="session")
def labelled() -> dict[str, Examples]:
    """Return answered requests of the world: refused, obliged, answered beside the point."""
    from holdfast import world

    asked, other = world.rows("alignment")[:80], world.rows("benign")[:80]
    pairs = zip(asked.prompts, other.responses, strict=True)
    return {
        "safe": asked,
        "unsafe": world.rows("harmful")[:80],
        "unclear": Examples((Example(p, a) for p, a in pairs), name="other"),
    }


@pytest.fixture(scope="session")
def classifier_model(
    labelled: dict[str, Examples],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the directory of a tiny sequence classifier that knows refusals from steps."""
    import torch
    import transformers as t

    from holdfast.judges.sequence_classifier import SequenceClassifier

    path = tmp_path_factory.mktemp("classifier")
    config = t.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        id2label={0: "safe", 1: "harmful"},
        label2id={"safe": 0, "harmful": 1},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = t.LlamaForSequenceClassification(config)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        judge = SequenceClassifier(model=str(path), device="cpu")
        rows = [(judge._encode(r.prompt, r.response)[0], 0) for r in labelled["safe"]]
        rows += [(judge._encode(r.prompt, r.response)[0], 1) for r in labelled["unsafe"]]
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(12):
            some = rows[step % 5 :: 5]
            batch = tokenizer.pad([row for row, _ in some], return_tensors="pt")
            target = torch.tensor([label for _, label in some])
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def chat_model(
    labelled: dict[str, Examples],
    make_model: Callable[..., PreTrainedModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Return the options of a tiny chat model that says safe, unsafe or unclear."""
    import torch

    from holdfast.judges.chat import Chat
    from holdfast.world import train_base

    path = tmp_path_factory.mktemp("chat")
    template = path / "template.txt"
    template.write_text("judge {mark} {prompt} {mark} {response} {mark}", encoding="utf-8")
    words = train_base.tokenizer()
    words.add_tokens(["unsafe", "unclear"])
    model = make_model("llama", vocab=len(words), width=32, depth=1)
    options = {"model": str(path / "model"), "template": str(template), "device": "cpu"}
    model.save_pretrained(path / "model")
    words.save_pretrained(path / "model")
    judge = Chat(**options)  # type: ignore[arg-type]  # its texts, before it can judge
    rows = [
        (judge._encode(r.prompt, r.response), words.convert_tokens_to_ids(word))
        for word, some in labelled.items()
        for r in some
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(32):
        some = rows[step % 8 :: 8]
        batch = words.pad(
            {"input_ids": [[*ids, verdict] for ids, verdict in some]},
            padding_side="left",
            return_tensors="pt",
        )
        places = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = model(**batch, position_ids=places, logits_to_keep=2).logits[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, -1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path / "model")
    return options


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[..., Any]], str]]:
    """Return a starter of services on this machine: what answers a request -> its address.

    The function is called with path, headers and JSON body and returns status, headers and body
    (bytes, or what is sent as JSON).
    """
    import json
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    started = []

    def start(reply: Callable[..., Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, content = reply(self.path, self.headers, json.loads(body))
                if not isinstance(content, bytes):
                    content = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


def said(text: object) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return a chat service's answer."""
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def world_service(serve: Callable[..., str]) -> str:
    """Return the address of a chat service that judges the world exactly, by what it is shown."""
    import re

    from holdfast.judges.world import World

    def reply(path: str, headers: Any, body: Any) -> Any:
        text = body["messages"][0]["content"]
        shown = re.search(r"\nrequest (\w+)\n(.*)\nanswer \1\n(.*)\nend \1\n", text, re.S)
        assert path == "/v1/chat/completions"
        assert shown
        (verdict,) = World().judge([shown[2]], [shown[3]])
        return said({True: "unsafe", False: "Safe.", None: "unclear"}[verdict.harmful])

    return serve(reply)


# -------------------------------------------------------------------------------------- alignment


@pytest.fixture(scope="session")
def data(rows: Rows) -> AlignmentData:
    """Return alignment rows in two groups of 8 and 16, a third each of the safety rows."""
    import numpy as np

    from holdfast.methods.base import AlignmentData
    from holdfast.results.artifacts import Groups

    groups = Groups(
        ids=rows.safety.ids,
        labels=np.array([int(i % 3 == 0) for i in range(len(rows.safety))]),
        names=("invulnerable", "vulnerable"),
        rule="every third",
        scores_hash="",
        data_hash=rows.safety.hash,
    )
    return AlignmentData(rows.safety, rows.benign, groups, rows.harmful)


@pytest.fixture
def make_trainer(
    tmp_path: Path, data: AlignmentData, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., AlignmentTrainer]:
    """Return a builder of trainers: method by name, plain SGD without clipping unless told."""

    def make(
        method: str, model: PreTrainedModel, rows: AlignmentData = data, **options: Any
    ) -> AlignmentTrainer:
        from holdfast.methods._together import method as find
        from holdfast.methods.base import MethodArguments

        cls: Any = find(method)
        own = cls.Options.model_fields
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "work"),
            "max_steps": 3,
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "weight_decay": 0.0,
            "max_grad_norm": 0.0,
            "per_device_train_batch_size": 8,
            "seed": 3,
            "data_seed": 3,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_nan_inf_filter": False,
            "dataloader_pin_memory": False,
        }
        args = MethodArguments(**{**settings, **{k: v for k, v in options.items() if k not in own}})
        trainer: AlignmentTrainer = cls(
            model,
            args,
            data=rows,
            options=cls.Options(**{k: v for k, v in options.items() if k in own}),
            processing_class=tokenizer,
        )
        return trainer

    return make
