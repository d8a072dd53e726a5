# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Recipes: what `xllm train` runs, as a YAML file with strict keys.

```yaml
model: checkpoints/base      # folder or Hub id of an X-LLM (or `init:`, sizes of a tiny one with random weights)
output_dir: runs/speech
vars: {data_root: null}      # set on the command line: data_root=...; null = must be given; used as ${data_root}
stages:                      # run one after the other, each from the previous one's checkpoint
  - stage: 1
    modalities: [speech]
    train_encoder: true
    data: {train: [{path: "${data_root}/train.jsonl"}]}
    trainer: {max_steps: 1000, learning_rate: 1.0e-3}
  - stage: 2
    modalities: [speech]
```

A recipe of one stage may write the stage's keys (`stage`, `modalities`, `data`, `trainer`, ...) at the top level. With
`stages`, top-level `data`, `trainer` and `evaluate` are defaults of every stage; an override `key=value` of one of
them holds for all stages. Paths are relative to the current folder, media files to the folder of the file that names
them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from xllm.training.adapters import LoraSpec
from xllm.training.data.spoken_rows import SpeakSpec
from xllm.training.recipes.recipe_checks import check_stage
from xllm.training.recipes.recipe_values import (
    NEEDED,
    STAGE_DEFAULTS,
    apply_overrides,
    copy_value,
    read_yaml,
    substitute,
)
from xllm.training.recipes.strict import RecipeError, build, check_choice
from xllm.training.stages import resolve_stage
from xllm.training.trainers.distillation import DistillSpec
from xllm.training.trainers.optim_groups import OptimSpec


RECIPES = Path(__file__).parent
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class SourceSpec:
    """One data source; see `xllm.training.data.sources` for the formats.

    Args:
        path (`str`): a file or folder of samples, a glob, or a data set's id on the Hub (`user/name`, `hf://user/name`);
            or `dataset`, a `datasets.Dataset` or list of samples, from Python only.
        speak (`SpeakSpec`): instead of a path: texts to be said by a synthesiser (`training.data.spoken_rows`).
        config, split (`str`): of a Hub id or a folder that has several; the split is by default "train".
        format (`str`): "auto" (told from the columns) or one of `xllm.training.data.row_forms.FORMS`.
        modality (`str`): of plain tables: a row of the modality table, or "text" for rows without media.
        file_column, text_column (`str`): of plain tables; default the one column with a common name.
        prompts (`list[str]`): of tables and captions: one is drawn per sample and epoch; `{column}` is filled in.
        answer (`str`): of tables: the assistant's turn; `{column}` is filled in; default the text column.
        where, exclude (`dict`): column -> value or values a row must, or must not, have; null in `exclude`: none.
        media_root (`str`): folder of relative media paths; default the folder of `path`.
        weight (`float`): how often each sample is seen per epoch, on average; 0.5 is every other one.
        text_equivalent (`str`): what a medium of the row says, for `distill`; `{column}` is filled in; default the
            row's own `text_equivalent`, a text or a list of them.
        limit (`int`): only the first rows, after `where` and `exclude`.
        normalize_text (`str`): spelling of answers (`xllm.training.data.text_normalizers`), "none" for as they are;
            default that of `data`.
        name (`str`): for messages and logs; default the file's name.
    """

    path: str | None = None
    config: str | None = None
    split: str | None = None
    dataset: Any = None
    speak: SpeakSpec | None = field(default=None, metadata={"of": SpeakSpec})
    format: str = "auto"
    modality: str | None = None
    file_column: str | None = None
    text_column: str | None = None
    prompts: list[str] | None = None
    answer: str | None = None
    where: dict = field(default_factory=dict)
    exclude: dict = field(default_factory=dict)
    media_root: str | None = None
    weight: float = 1.0
    text_equivalent: str | None = None
    limit: int | None = None
    normalize_text: str | None = None
    name: str | None = None


@dataclass(kw_only=True)
class DataSpec:
    """What a stage reads.

    Args:
        train, eval (`list[SourceSpec]`): sources; `eval` gives the evaluation loss.
        augment (`list`): of training data: names, or one-key mappings name -> settings
            (`xllm.training.data.augmentation`).
        on_error (`str`): "raise", or "skip" to leave out media that cannot be decoded, counted in the log.
        cache_media (`bool`): keep decoded media in memory.
        cache_features (`str`): a folder that keeps what frozen encoders give for pictures (`docs/recipes.md`).
        streaming (`bool`): never read `train` as a whole (`docs/data.md`); needs `trainer.max_steps`, and a source's
            `weight` is its share of the samples then.
        shuffle_buffer (`int`): of a stream: rows in the memory of each rank; a 24th of them at a time is shuffled.
        max_length (`int`): tokens of a sample; older turns are cut from the left, media and the last question never.
        loss_on (`str`): "last" turn of the assistant, or "all" of them.
        max_seconds (`float`): of a sound (default 60, null for no limit); `long_audio` says what happens to a longer
            one: "raise", "chunk" or "window" (`xllm.training.data.long_media`).
        packing (`bool`): samples of a batch share rows of the language model, without padding; by default where it
            takes a mask of ours (`docs/recipes.md`).
        one_modality (`bool`): batches whose samples hold the same kinds of media.
        normalize_text (`str`): spelling of the answers of all sources that do not say otherwise, of evaluations too.
    """

    train: list[SourceSpec] = field(default_factory=list, metadata={"of": SourceSpec})
    eval: list[SourceSpec] = field(default_factory=list, metadata={"of": SourceSpec})
    augment: list = field(default_factory=list)
    on_error: str = "raise"
    cache_media: bool = False
    cache_features: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    max_length: int | None = None
    loss_on: str = "last"
    max_seconds: float | None = 60.0
    long_audio: str = "raise"
    packing: bool | None = None
    one_modality: bool = False
    normalize_text: str | None = None


@dataclass(kw_only=True)
class EvaluationSpec:
    """An evaluation by generation after the stage: `task` of `xllm.training.evaluation.evaluation.TASKS` on `data`.

    `metric` is one of `xllm.training.evaluation.metrics` or `caption_metrics`; by default that of the task.
    With `when`, only if that is anything but null, false or empty: `when: ${holdout}`. With `window`, sounds are heard
    in windows of at most so many seconds (docs/long_media.md). `normalizer` is one of
    `xllm.training.data.text_normalizers`, for references and answers. A sample that cannot be used ends the run, or is
    left out and counted with `on_error: skip`. `media`: real, shuffled, blank or absent, all or those that `media_of`
    names (`xllm.training.evaluation.other_media`).
    """

    name: str
    when: Any = True
    task: str = "asr"
    metric: str | None = None
    data: list[SourceSpec] = field(default_factory=list, metadata={"of": SourceSpec})
    max_new_tokens: int = 64
    batch_size: int = 16
    window: float | None = None
    normalizer: str | None = None
    on_error: str = "raise"
    media: str = "real"
    media_of: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class StageSpec:
    """One stage of a recipe.

    Args:
        stage (`int` or `str`): 1, 2, 3 or "convert", "align", "integrate" (0, "text": a stand-in language model).
        modalities (`list[str]`): rows to train; default all.
        train_encoder, train_query_tokens, train_shared (`bool`): see `freeze_for_stage`.
        objective (`dict`): fields of the stage-1 model's config, e.g. loss weights.
        text_side (`str`): of a Q-Former's stage 1: a BERT by folder or Hub id (bert-base-uncased), or LAVIS's stage-1
            file; default the heads beside the model, or else random weights over the language model's words.
        text_tokenizer (`str`): default that of `text_side`; bert-base-uncased for a `.pth` file.
        lora: an adapter of the language model, trained beside the interfaces, see `LoraSpec`.
        distill: the text LLM's answers are learnt from too, see `DistillSpec`.
        optim (`list[OptimSpec]`): learning rate and weight decay by names of parameters, see `OptimSpec`.
        init_from (`dict[str, str]`): row -> row whose adapter and query tokens it starts from, e.g. `{video: image}`.
        reset (`list[str]`): rows whose interfaces start from random weights, whatever the model holds.
        data, trainer, evaluate: see `DataSpec`; fields of `TrainingArguments`; evaluations run after the stage.
        name (`str`): folder of the stage's checkpoint; default "stage2-speech" and so on.
        report_samples (`int`): how many samples `report.html` shows with their answers before and after.
    """

    stage: int | str
    modalities: list[str] | None = None
    train_encoder: bool = False
    train_query_tokens: bool = False
    train_shared: bool = False
    objective: dict = field(default_factory=dict)
    text_side: str | None = None
    text_tokenizer: str | None = None
    lora: LoraSpec | None = field(default=None, metadata={"of": LoraSpec})
    distill: DistillSpec | None = field(default=None, metadata={"of": DistillSpec})
    optim: list[OptimSpec] = field(default_factory=list, metadata={"of": OptimSpec})
    init_from: dict = field(default_factory=dict)
    reset: list[str] = field(default_factory=list)
    data: DataSpec = field(default_factory=DataSpec, metadata={"of": DataSpec})
    trainer: dict = field(default_factory=dict)
    evaluate: list[EvaluationSpec] = field(default_factory=list, metadata={"of": EvaluationSpec})
    name: str | None = None
    report_samples: int = 4

    @property
    def folder(self) -> str:
        """Name of the folder of this stage's checkpoint, e.g. "stage2-image-video"."""
        stage = int(resolve_stage(self.stage))
        return self.name or "-".join([f"stage{stage}", *(self.modalities or ([] if stage in (0, 3) else ["all"]))])


@dataclass(kw_only=True)
class Recipe:
    """A whole recipe: see the module's first lines. `stages` holds at least one.

    `dtype` is what frozen towers are held in: "auto" (as they are stored), "bfloat16", ...; interfaces are float32 in
    any case. A checkpoint names the towers' sources as before, and opens them in this dtype unless it is told another.
    """

    model: str | None = None
    init: dict | None = None
    output_dir: str
    seed: int = 42
    dtype: str = "auto"
    stages: list[StageSpec] = field(default_factory=list, metadata={"of": StageSpec})
    source: str = "recipe"


def shipped_recipes() -> list[str]:
    """Names of the recipes of this package, as `xllm train` takes them."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """A recipe file, or one of the shipped recipes by name.

    Raises:
        RecipeError: neither; the message lists the shipped ones.
    """
    path = Path(name_or_path)
    for candidate in (path, RECIPES / path.name, RECIPES / f"{path.name}.yaml"):
        if candidate.is_file() and (candidate == path or path.parent == Path()):
            return candidate
    raise RecipeError(f"{name_or_path}: no such recipe file; shipped recipes: {', '.join(shipped_recipes())}")


def load_recipe(recipe: "str | Path | Mapping | Recipe", overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read and check a recipe; nothing is written.

    Args:
        recipe: a YAML file, the name of a shipped recipe, the same as a dict, or a `Recipe` (overrides then not
            allowed).
        overrides: `"a.b=value"` strings (values are YAML), or a mapping of dotted keys.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a value of the wrong kind, a variable that is not set.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise RecipeError("overrides go with a recipe file or a dict, not with a Recipe object: set its fields")
        return recipe
    source = "recipe"
    if not isinstance(recipe, Mapping):
        path = find_recipe(recipe)
        source = str(path)
        recipe = read_yaml(path.read_bytes(), f"{source}: not a YAML file")
        if not isinstance(recipe, Mapping):
            raise RecipeError(f"{source}: a recipe is a mapping of keys, got {type(recipe).__name__}")
    raw = copy_value(recipe)
    variables = {name: NEEDED if value is None else value for name, value in (raw.pop("vars", None) or {}).items()}
    apply_overrides(raw, variables, overrides, source)
    raw = substitute(raw, variables, source)
    is_flat = "stages" not in raw
    try:
        result = build(Recipe, _distribute_stages(raw, source), source, "")
        result.source = source
        _check(result, source)
    except RecipeError as error:  # its own keys stand at the top level there
        raise RecipeError(str(error).replace("stages.0.", "") if is_flat else str(error)) from error
    return result


def _distribute_stages(raw: dict, source: str) -> dict:
    """Top-level keys of a stage moved into `stages`."""
    own = {item.name for item in fields(StageSpec)}
    at_top = {key: raw.pop(key) for key in list(raw) if key in own}
    if "stages" not in raw:
        if "stage" not in at_top:
            raise RecipeError(f"{source}: which stage? give `stage`, or a list `stages`")
        return {**raw, "stages": [at_top]}
    if extra := [key for key in at_top if key not in STAGE_DEFAULTS]:
        raise RecipeError(f"{source}: {', '.join(extra)} stands beside `stages`; write it inside each stage")
    stages = raw["stages"]
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise RecipeError(f"{source}: stages: expected a list of mappings")
    merged = []
    for stage in stages:
        defaults = {key: copy_value(value) for key, value in at_top.items()}
        for key in ("data", "trainer"):
            if isinstance(defaults.get(key), dict) and isinstance(stage.get(key), dict):
                stage = {**stage, key: {**defaults[key], **stage[key]}}
        merged.append({**defaults, **stage})
    return {**raw, "stages": merged}


def _check(recipe: Recipe, source: str) -> None:
    """What the types cannot say."""
    if (recipe.model is None) == (recipe.init is None):
        raise RecipeError(f"{source}: give exactly one of `model` (folder or Hub id of an X-LLM) and `init`")
    check_choice(f"{source}: dtype", recipe.dtype, DTYPES)
    for index, stage in enumerate(recipe.stages):
        where = f"{source}: stages.{index}"
        check_stage(where, stage)
        rounds = "train_encoder" if stage.train_encoder else "lora.merge" if stage.lora and stage.lora.merge else None
        if recipe.dtype in ("bfloat16", "float16") and rounds:
            raise RecipeError(
                f"{where}.{rounds}: dtype {recipe.dtype} would round what it saves; leave one of them out"
            )
    folders = [stage.folder for stage in recipe.stages]
    if len(set(folders)) < len(folders):
        raise RecipeError(f"{source}: two stages would write to {', '.join(sorted(folders))}; give each a `name`")


__all__ = [
    "DataSpec",
    "EvaluationSpec",
    "Recipe",
    "RecipeError",
    "SourceSpec",
    "StageSpec",
    "find_recipe",
    "load_recipe",
    "shipped_recipes",
]
