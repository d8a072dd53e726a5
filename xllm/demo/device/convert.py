# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The status interface's first stage: what a state's fields are called and what they say, in the model's own words.

Each token of the interface is fitted to the embeddings of the two words that describe its field, name and value, to
which the language model is used. It is not run, so that a step takes milliseconds. From random weights, answers alone
are a poor teacher of names: in a description a value follows from its place, and where a field is asked for by name,
no answer depends on a token that does not bear it.
"""

import json
from pathlib import Path
from typing import Any

import torch

from xllm.demo.device.world import describe
from xllm.demo.settings import Optimisation
from xllm.demo.towers import descend


MOST_STATES = 4000


def learn_words(model: Any, processor: Any, data: Path, plan: Optimisation, seed: int) -> str:
    """Train the interface on the states of `data`; a line of progress.

    Args:
        plan: a batch is of fields, of any states.
    """
    words = model.get_input_embeddings().weight.detach()
    interface, reader = model.model.interfaces["status"], processor.readers["status"]
    rows, wanted = [], []
    for path in sorted((data / "states").glob("train-*.json"))[:MOST_STATES]:
        state = json.loads(path.read_text(encoding="utf-8"))
        named = torch.tensor(processor.tokenizer.sp_model.encode(describe(state))).view(-1, 2)
        rows.append(torch.from_numpy(reader.load(state).values))
        wanted.append(words[named].sum(1))
    values, targets = torch.cat(rows), torch.cat(wanted)  # (fields, features), (fields, width)
    spread, drawn = targets.var(), torch.Generator().manual_seed(seed)

    def loss_of_batch() -> torch.Tensor:
        chosen = torch.randint(len(values), (plan.batch_size,), generator=drawn)
        written = interface.adapter(interface.converter(values[chosen][None]).embeddings)[0]
        return (written - targets[chosen]).square().mean() / spread

    return descend("status", [interface], interface, plan, loss_of_batch)
