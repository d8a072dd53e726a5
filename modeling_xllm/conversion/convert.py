# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Published `.pth` files (LAVIS's BLIP-2, EVA-CLIP, the authors' own checkpoints) as weights of X-LLM.

Names are declared in `layouts`, sizes read off the shapes in `sizes`. Several files are laid over each other in the
order of `LAYOUTS`: the authors' stage-3 file over those of stage 2, the image's over the speech's.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.conversion.layouts import BUFFERS, LAYOUTS, Layout, published_name
from xllm.modeling_xllm.conversion.pth_files import ConversionError, read_pth
from xllm.modeling_xllm.conversion.sizes import Shapes, config_of_shapes
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.heads import own_fields
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.weight_files import check_fit, listed


# Parts that files hold without the interface around them: fixed names, whatever the sizes.
_OWN = ("converter.query_tokens", "adapter.weight", "adapter.bias")
LOOSE_KEYS = {f"model.interfaces.{name}.{key}" for name in ("image", "video", "speech") for key in _OWN}
# First names of a language model in the state_dict() of a whole model.
WHOLE_MODEL = r"(\w*(llama|glm|opt|llm|lang|language)_?model|transformer|lm_head|model)\."
LN_VISION_PREFIX = "model.vision_tower.post_layernorm."


def is_pth(source: str) -> bool:
    """Whether `source` names a file of this kind, rather than a folder or a Hub repository."""
    return Path(source).suffix in (".pth", ".pt", ".bin") or Path(source).is_file()


def reference_shapes(config: XLLMConfig, with_vision: bool = False) -> dict[str, torch.Size]:
    """Names and shapes of towers and interfaces (and, of a stage-1 config, of its text side); nothing is allocated."""
    with torch.device("meta"):
        if isinstance(config, QFormerPreTrainingConfig):
            return {key: value.shape for key, value in XLLMForQFormerPreTraining(config).state_dict().items()}
        state = XLLMEncoderModel(config).state_dict()
        if with_vision:
            tower = XLLMEncoderModel._build_tower(config.vision_config)
            state.update({f"vision_tower.{key}": value for key, value in tower.state_dict().items()})
    return {f"model.{key}": value.shape for key, value in state.items()}


@dataclass
class PublishedFile:
    """One file: its layout, its tensors under their published names, and the names of those that are of no use."""

    source: str
    kind: str
    tensors: dict[str, torch.Tensor]
    left_out: list[str]

    @property
    def layout(self) -> Layout:
        """The declared names."""
        return LAYOUTS[self.kind]

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.source} ({self.layout.title})"

    @property
    def shapes(self) -> Shapes:
        """What its sizes are read from."""
        return Shapes(self.tensors, self.label)

    def our_names(self) -> dict[str, str]:
        """Our parameter -> published name(s), for everything the file holds; the `ConversionError` lists the first few
        that are unexpected or missing, with their number."""
        shapes = reference_shapes(config_of_shapes(self.shapes), "visual_encoder.cls_token" in self.tensors)
        keys = sorted({*shapes, *LOOSE_KEYS})
        names = {}
        for table in self.layout.tables + self.layout.optional:
            found = {key: name for key in keys if (name := published_name(table, key)) and key not in names}
            present = any(name in self.tensors for joined in found.values() for name in joined.split())
            if present or table in self.layout.tables:
                names.update(found)
        declared = {name for joined in names.values() for name in joined.split()}
        unexpected = self.tensors.keys() - declared
        wrong = (("missing", declared - self.tensors.keys()), ("unexpected", unexpected))
        problems = [f"{len(names)} names are {what}: {listed(names)}" for what, names in wrong if names]
        if problems:
            if any(re.match(WHOLE_MODEL, name) for name in unexpected):
                problems.append(
                    "a whole model's state_dict() holds its language model too: keep the trained part alone"
                )
            raise ConversionError(f"{self.label}: {'; '.join(problems)}")
        return names

    def our_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors under our names; see `our_names`."""
        return {key: self._tensor(name) for key, name in self.our_names().items()}

    def _tensor(self, name: str) -> torch.Tensor:
        if " " in name:  # q_bias and v_bias; the keys have none
            first, last = (self.tensors[one] for one in name.split())
            return torch.cat([first, torch.zeros_like(first), last])
        return self.tensors[name].reshape(1) if name == "temp" else self.tensors[name]


def open_published(source: str, kind: str | None = None) -> PublishedFile:
    """Open a `.pth` file; its `kind` is a key of `LAYOUTS`, by default told by the names in it. One that cannot be
    read, or is of no known kind, is a `ConversionError`."""
    tensors = read_pth(source)
    heads = {name.split(".")[0] for name in tensors if not re.fullmatch("|".join(BUFFERS), name)}
    kind = kind or next((name for name, layout in LAYOUTS.items() if layout.is_like(heads)), None)
    if kind is None:
        starts, known = ", ".join(sorted(heads)[:5]), ", ".join(layout.title for layout in LAYOUTS.values())
        raise ConversionError(
            f"{source}: a checkpoint of another architecture: its names start with {starts}; known are {known}"
        )
    if kind == "eva":
        tensors = {f"visual_encoder.{name}": value for name, value in tensors.items()}
    if kind == "blip2-stage1":
        _check_tied(tensors, source)
    dropped = re.compile("|".join(LAYOUTS[kind].dropped))
    used = {name: value for name, value in tensors.items() if not dropped.fullmatch(name)}
    return PublishedFile(source, kind, used, [name for name in tensors if name not in used])


def _check_tied(tensors: dict[str, torch.Tensor], source: str) -> None:
    """LAVIS's captioning head repeats the word embeddings; a head of its own has no place in `QFormerTextBranch`."""
    for name, copy in (
        ("Qformer.bert.embeddings.word_embeddings.weight", "Qformer.cls.predictions.decoder.weight"),
        ("Qformer.cls.predictions.bias", "Qformer.cls.predictions.decoder.bias"),
    ):
        if name in tensors and copy in tensors and not torch.equal(tensors[name], tensors[copy]):
            raise ConversionError(f"{source}: {copy} differs from {name}, to which it is tied in BLIP-2")


@dataclass
class Conversion:
    """Several files as one set of weights.

    Args:
        config: of the model the weights are for.
        tensors: towers and interfaces, under our names.
        heads: what stage 1 has beside, under the names of `XLLMForQFormerPreTraining`.
        head_fields: of the stage-1 config that they belong to.
        origin: our name -> the file that the tensor is from.
        left_out: file -> names that were declared to be of no use.
    """

    config: XLLMConfig
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    heads: dict[str, torch.Tensor] = field(default_factory=dict)
    head_fields: dict = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


def check_shapes(tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size], origin: dict[str, str]) -> None:
    """Raises a `StageCheckpointError` that names file, parameter and both shapes unless every tensor has a place of
    its shape."""
    target = "this model"
    if tensors.keys() - shapes.keys():
        target += ", which has no such modality, or the rest of that interface is in none of the files"
    for source in sorted({origin[key] for key in tensors}):
        found = {key: value for key, value in tensors.items() if origin[key] == source}
        check_fit(found, {key: shapes[key] for key in found.keys() & shapes.keys()}, source, target)


def convert(sources: list[str], kind: str | None = None, base: XLLMConfig | None = None) -> Conversion:
    """Lay published files over each other, for a model of their own sizes or for a given one.

    Args:
        sources: `.pth` files in any order, one of a kind.
        kind: of a single file; default by the names in it.
        base: the model that the weights are to go into; what they leave out it has already.

    Raises:
        ConversionError: as `open_published`; two files of one kind; a shape that does not fit; without `base`, a part
            of the model that is in none of the files.
    """
    if kind is not None and len(sources) > 1:
        raise ConversionError(f"kind {kind} with {len(sources)} files: there is one file of a kind; convert it alone")
    files = [open_published(source, kind) for source in sources]
    files.sort(key=lambda file: list(LAYOUTS).index(file.kind))
    for first, second in zip(files, files[1:]):
        if first.kind == second.kind:
            raise ConversionError(f"{first.source} and {second.source} are both {first.layout.title}: give one")
    kinds = {file.kind for file in files}
    if "blip2-stage1" in kinds and not kinds <= {"blip2-stage1", "eva"}:
        raise ConversionError("a stage-1 file makes a stage-1 model: only eva_vit_g.pth goes with it")
    together = {name: value for file in files for name, value in file.tensors.items()}
    config = config_of_shapes(Shapes(together, ", ".join(sources)))
    result = Conversion(config if base is None else base)
    if isinstance(config, QFormerPreTrainingConfig):
        result.head_fields = own_fields(config)
    for file in files:
        if file.left_out:
            result.left_out[file.source] = file.left_out
        for key, value in file.our_tensors().items():
            (result.tensors if key.startswith("model.") else result.heads)[key] = value
            result.origin[key] = file.source
    check_shapes(result.heads, reference_shapes(config), result.origin)
    shapes = reference_shapes(config if base is None else base, base is None and "eva" in kinds)
    check_shapes(result.tensors, shapes, result.origin)
    if base is None:
        _require(shapes.keys() - result.origin.keys(), sources, is_stage1=bool(result.heads))
    return result


def _require(missing: set[str], sources: list[str], is_stage1: bool) -> None:
    hints = {
        "model.vision_tower.post_layernorm": "ln_vision is in BLIP-2's files",
        "model.vision_tower": "the image encoder is in LAVIS's eva_vit_g.pth",
        "model.interfaces": "each interface comes whole, from its stage-2 file",
    }
    if is_stage1:  # it has no adapter: stage 2 starts a new one
        missing = {key for key in missing if not key.startswith("model.interfaces.image.adapter.")}
    for prefix, hint in hints.items():
        if found := sorted(key for key in missing if key.startswith(prefix)):
            raise ConversionError(
                f"{', '.join(sources)}: {len(found)} tensors of the model are in none of the files, the first being "
                f"{found[0]}; {hint}"
            )
