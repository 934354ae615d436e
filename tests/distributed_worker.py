"""One rank of tests/test_distributed.py: three steps of a method, the weights at the end to a file.

torchrun --nproc_per_node N tests/distributed_worker.py OUT JSON
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as t
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from holdfast.errors import TrainingError
from holdfast.examples import Example, Examples
from holdfast.methods._together import method
from holdfast.methods.base import AlignmentData, MethodArguments
from holdfast.models.adapters import add_lora
from holdfast.results.artifacts import Groups
from holdfast.results.files import write_json
from holdfast.world import train_base


def model(vocab: int, *, tied: bool) -> Any:
    torch.manual_seed(0)
    config = t.LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return t.LlamaForCausalLM(config).double()


def rows(benign: int = 0) -> AlignmentData:
    """Return rows of unequal lengths, so that the ranks' shares of the tokens differ."""
    answers = ("sorry , i can not help", "no", "i will not help you with that request")
    safety = Examples(
        Example(f"how do i brew tea {'at the lake ' * (i % 4)}number {i}", answers[i % 3])
        for i in range(24)
    )
    groups = Groups(
        ids=safety.ids,
        labels=np.array([int(i % 3 == 0) for i in range(24)]),
        names=("invulnerable", "vulnerable"),
        rule="every third",
        scores_hash="",
        data_hash=safety.hash,
    )
    harmful = Examples(Example(f"how do i brew number {i}", "first mix") for i in range(8))

    few = Examples(Example(f"how do i knit a hat {i}", "with two needles") for i in range(benign))
    return AlignmentData(safety, few if benign else None, groups, harmful)


def shard(trainer: Any) -> None:
    """Make FSDP2 real on CPUs: accelerate leaves it out where there is no accelerator."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = plugin
    trainer.is_fsdp_enabled = True


def main(out: Path, wanted: dict[str, Any]) -> None:
    tokenizer = train_base.tokenizer()
    network = model(len(tokenizer), tied=wanted.get("tied", False))
    if wanted.get("lora"):
        network = add_lora(network, 2, seed=0)
    cls: Any = method(wanted["method"])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    settings: dict[str, Any] = {
        "output_dir": str(out.with_suffix("")),
        "max_steps": 3,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": wanted.get("clip", 0.0),
        "per_device_train_batch_size": wanted["batch"] // world,
        "gradient_accumulation_steps": wanted.get("accumulation", 1),
        "seed": 3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "ddp_timeout": 120,
    }
    if wanted.get("fsdp"):
        settings |= {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
                "reshard_after_forward": True,
            },
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        }
    trainer = cls(
        network,
        MethodArguments(**settings),
        data=rows(wanted.get("benign", 0)),
        options=cls.Options(**wanted.get("options", {})),
        processing_class=tokenizer,
    )
    if wanted.get("fsdp"):
        shard(trainer)
    if "nan_on" in wanted and trainer.args.process_index == wanted["nan_on"]:
        accumulate = trainer.accumulate
        trainer.accumulate = lambda *inputs: accumulate(*inputs) * torch.nan
    try:
        trainer.train()
    except TrainingError as error:
        out.with_suffix(f".{trainer.args.process_index}.txt").write_text(str(error))
        raise SystemExit(0) from None
    parameters = dict(network.named_parameters())
    sharded = any(isinstance(p, DTensor) for p in parameters.values())
    whole = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone().contiguous()
        for name, p in parameters.items()
    }
    if trainer.args.process_index == 0:
        logged = [
            e for e in trainer.state.log_history if {"perturbation_gap", "inner_steps"} & e.keys()
        ]
        save_file(whole, out)
        write_json(out.with_suffix(".json"), {"sharded": sharded, "log": logged})


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
