# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Learning rates and weight decay per module: the `optim` key of a stage.

```yaml
optim:
  - {match: "interfaces.*.adapter", lr: 1.0e-3}                 # a glob over the parameters' names and paths
  - {match: "re:.*\\.lora_[AB]\\..*", lr: 2.0e-4, weight_decay: 0.0}   # a regular expression over whole names
  - {match: "interfaces", muon: true, lr: 0.02}   # their linear layers by Muon
```

A parameter belongs to the first entry that matches it; what none matches keeps the settings of `trainer`. Norms and
biases are not decayed, as the Trainer has it, whatever an entry says.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from xllm.training.recipes.strict import RecipeError
from xllm.training.trainers.muon import matrices_of, muon_settings


REGEX = "re:"


@dataclass(kw_only=True)
class OptimSpec:
    """Settings of the trained parameters whose names match.

    Args:
        match (`str`): a glob ("*" stands for anything) over names of parameters, or of the modules that they are in;
            "model." at its beginning may be left out. With "re:" before it, a regular expression over whole names.
        lr (`float`), weight_decay (`float`): default those of `trainer`.
        muon (`bool`): the entry is about matrices of linear layers only, and Muon trains them; needs an `lr`, which
            for interfaces with random weights is about ten times AdamW's.
    """

    match: str
    lr: float | None = None
    weight_decay: float | None = None
    muon: bool = False

    def takes(self, name: str) -> bool:
        """Whether a parameter of this name is meant."""
        if self.match.startswith(REGEX):
            return re.fullmatch(self.match.removeprefix(REGEX), name) is not None
        names = (name, name.removeprefix("model."))
        return any(fnmatchcase(one, pattern) for one in names for pattern in (self.match, f"{self.match}.*"))


def check_settings(where: str, specs: Iterable[OptimSpec]) -> None:
    """Raises a `RecipeError` for an entry that sets nothing, a negative value, or no regular expression."""
    for index, spec in enumerate(specs):
        if spec.lr is None and spec.weight_decay is None:
            raise RecipeError(f"{where}.{index} sets neither lr nor weight_decay of {spec.match!r}")
        if spec.muon and spec.lr is None:
            raise RecipeError(f"{where}.{index}.lr is missing: Muon's rate is not that of the other optimizer")
        if min(spec.lr or 0, spec.weight_decay or 0) < 0:
            raise RecipeError(f"{where}.{index}: lr and weight_decay must not be negative")
        try:
            spec.takes("")
        except re.error as error:
            raise RecipeError(f"{where}.{index}.match is {spec.match!r}, no regular expression: {error}") from error


def entry_of_each(specs: Sequence[OptimSpec], model: nn.Module) -> dict[str, int | None]:
    """Trained parameter -> number of the entry that it belongs to, `None` for the settings of `trainer`.

    Raises:
        RecipeError: an entry matches no parameter, only frozen ones, or none that an earlier one leaves.
    """
    parameters = {_plain(name): parameter for name, parameter in model.named_parameters()}
    matrices = matrices_of(model)

    def takes(spec: OptimSpec, name: str) -> bool:
        return spec.takes(name) and (not spec.muon or id(parameters[name]) in matrices)

    found = {
        name: next((index for index, spec in enumerate(specs) if takes(spec, name)), None)
        for name, parameter in parameters.items()
        if parameter.requires_grad
    }
    for index, spec in enumerate(specs):
        if index in found.values():
            continue
        hits = [name for name in parameters if takes(spec, name)]
        what = f"no {'matrix of a linear layer' if spec.muon else 'parameter'}; trained ones are called {_some(found)}"
        if any(name in found for name in hits):
            what = "only parameters of the entries before it"
        elif hits:
            what = f"only frozen parameters, e.g. {hits[0]}; trained ones are called {_some(found)}"
        raise RecipeError(f"optim.{index}: {spec.match!r} matches {what}")
    return found


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return f"{names[0]} or {names[-1]}" if names else "nothing"


def _plain(name: str) -> str:
    """A parameter's name without what DDP and torch.compile put before it."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def split_groups(
    optimizer: torch.optim.Optimizer, specs: Sequence[OptimSpec], model: nn.Module, decayed: Iterable[str]
) -> None:
    """Split the groups of a new optimizer by the entries; `decayed` are the names of what may be decayed."""
    entries, decayed = entry_of_each(specs, model), {_plain(name) for name in decayed}
    names = {id(parameter): _plain(name) for name, parameter in model.named_parameters()}
    groups: dict[tuple, dict] = {}
    of_muon = muon_settings()
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            name = names[id(parameter)]
            entry = entries[name]
            key = (-1 if entry is None else entry, number, name in decayed)
            settings = {} if entry is None else {"lr": specs[entry].lr, "weight_decay": specs[entry].weight_decay}
            settings = {field: value for field, value in settings.items() if value is not None}
            if entry is not None and specs[entry].muon:
                settings = {**of_muon, "weight_decay": group["weight_decay"], **settings}
            if name not in decayed:
                settings["weight_decay"] = 0.0
            groups.setdefault(key, {**group, **settings, "params": []})["params"].append(parameter)
    optimizer.param_groups[:] = [groups[key] for key in sorted(groups)]


__all__ = ["OptimSpec", "check_settings", "entry_of_each", "split_groups"]
