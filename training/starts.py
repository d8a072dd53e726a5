# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What an interface starts a stage from, if not from what it holds: random weights, or what another has learnt."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from xllm.modeling_xllm.stage1.modeling_speech_recognition import XLLMForSpeechRecognition
from xllm.modeling_xllm.weight_files import copy_tensors
from xllm.modeling_xllm.x2l_interfaces import X2LInterface
from xllm.training.saving.lineage import interfaces_fingerprint, lineage_entry, over, tensor_digest
from xllm.training.stages import StageError, resolve_modalities


def check_reset(config, names: Iterable[str], modalities: Iterable[str]) -> None:
    """Raises a `StageError` if a row that is to start anew does not exist, or would not be trained."""
    resolve_modalities(config, list(names))
    if idle := [name for name in names if name not in modalities]:
        raise StageError(f"reset: this stage does not train {idle[0]}; add it to modalities, or leave it out of reset")


@torch.no_grad()
def reset_interfaces(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Give interfaces the random weights that a new model would have; a converter of another row stays."""
    for name in names:
        row = model.config.modalities[name]
        new = X2LInterface(row, model.config.row_of_converter(name))
        _initialise(new, model)
        copy_tensors(new.state_dict(), model.model.interfaces[name].state_dict(), f"reset: {name}")


def start_from(model: PreTrainedModel, init_from: dict[str, str]) -> None:
    """Give an interface what another has learnt (video's stage 2 starts from the image interface, paper sec. 3.2)."""
    for name, other in init_from.items():
        own, given = (model.model.interfaces[row].state_dict() for row in (name, other))
        copy_tensors({key: given[key] for key in own.keys() & given.keys()}, own, f"init_from: {other} for {name}")


@torch.no_grad()
def keep_words(model: PreTrainedModel, name: str, checkpoint: str) -> None:
    """Let the tokens of a C-Former be mixtures of the language model's words, as its stage 1 has told them.

    The head of stage 1 is kept behind the C-Former, with a softmax, and the adapter starts as the embeddings of its
    words, without an activation: a token that the head is sure of is one, another lies between several, which no
    Linear makes of the C-Former's states. So Ma et al. 2025 (LegoSLM, arXiv 2505.11352) couple a CTC recogniser.
    The C-Former's tokens `(B, U, H)` become shares `(B, U, V)` of the V words of the head, which sum to 1 over them;
    the adapter, `(D, V)`, makes `(B, U, D)` of these. `config.lineage` gets an entry with "words": V.

    Args:
        model: an X-LLM; the weights of its row are replaced.
        name, checkpoint: the row, and the folder or Hub id that its stage 1 has left, with the head `(V, H)`.

    Raises:
        ValueError: no C-Former, or no head of this row there, or of other words than the language model has.
    """
    row = model.config.modalities[name]
    found = XLLMForSpeechRecognition.read_heads(checkpoint)
    if row.converter != "cformer" or found is None or found[0]["modality"] != name:
        raise ValueError(f"{checkpoint}: has no head of a stage 1 that taught {name} to recognise words; run stage 1")
    weight, bias = found[1]["token_head.weight"], found[1]["token_head.bias"]
    words: Any = model.get_input_embeddings().weight
    if len(weight) > len(words) or len(weight) != found[0]["vocab_size"]:
        raise ValueError(f"{checkpoint}: its head tells {len(weight)} words, the language model has {len(words)}")
    old, parent = model.model.interfaces[name], interfaces_fingerprint(model)
    row.converter_config.num_words, row.adapter_activation = len(weight), None
    new = X2LInterface(row, row).to(old.adapter.weight)
    adapter = {"adapter.weight": words[: len(weight)].T, "adapter.bias": torch.zeros_like(new.adapter.bias)}
    head = {"converter.word_head.weight": weight, "converter.word_head.bias": bias}
    kept = {key: value for key, value in old.state_dict().items() if not key.startswith("adapter.")}
    copy_tensors({**kept, **head, **adapter}, new.state_dict(), f"words of {checkpoint}")
    model.model.interfaces[name] = new.train(old.training)
    digest = over({key: tensor_digest(value) for key, value in head.items()})
    data = {"names": [f"head of stage 1, {len(weight)} words"], "samples": 0, "sha256": digest}
    entry = lineage_entry(1, [name], parent, interfaces_fingerprint(model), data, {"tensors": 0, "sha256": over({})})
    model.config.lineage = [*(model.config.lineage or []), {**entry, "words": len(weight)}]


def _initialise(module: nn.Module, owner: PreTrainedModel) -> None:
    """Each module's weights as the model that it is in makes them; transformers does so for whole models only."""
    for child in module.children():
        _initialise(child, child if isinstance(child, PreTrainedModel) else owner)
    owner._init_weights(module)


__all__ = ["check_reset", "keep_words", "reset_interfaces", "start_from"]
