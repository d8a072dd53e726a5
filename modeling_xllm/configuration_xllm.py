# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Configuration of X-LLM (arXiv 2305.04160): the language model, the towers, and one table of modalities.

The model walks the table and has no other notion of a modality. Defaults are the paper's sizes; deviation: the video
row shares the image row's Q-Former, as the authors' code does (`shares_converter_with=None` gives it the paper's own).
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, ParakeetEncoderConfig, PreTrainedConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from .configuration_chatglm import ChatGLMConfig
from .converters import CONVERTERS, converter_class
from .speech_encoders import output_width, speech_input


# Placeholders never reach the embedding: where a language model's vocabulary is full, they have the ids behind it.
IDS_BEHIND_VOCABULARY = 1000
# Others (flash and flex attention) are for the language model, whose texts are long; the other parts keep theirs.
ATTENTION_OF_ALL_PARTS = ("eager", "sdpa")


def _as_config(value: dict | PreTrainedConfig | None, default: PreTrainedConfig, row: str) -> PreTrainedConfig:
    """`value` as a config object; a dict is read by its own `model_type` (the default's first, then transformers')."""
    if value is None or isinstance(value, PreTrainedConfig):
        return default if value is None else value
    values = dict(value)
    model_type = values.pop("model_type", default.model_type)
    if model_type == default.model_type:
        return type(default)(**values)
    try:
        return AutoConfig.for_model(model_type, **values)
    except ValueError as error:
        raise ValueError(f"{row}: transformers knows no model_type {model_type!r}") from error


def _fields(value: dict | PreTrainedConfig | None) -> dict:
    return value.to_dict() if isinstance(value, PreTrainedConfig) else dict(value or {})


def _older_name(key: str) -> property:
    """`X2LConfig.converter_config` under the name that a kind of converter has for it; `None` for other kinds."""

    def get(row: "X2LConfig") -> PreTrainedConfig | None:
        return row.converter_config if converter_class(row.converter).config_key == key else None

    return property(get, lambda row, value: setattr(row, "converter_config", value))


@strict
class X2LConfig(PreTrainedConfig):
    """One row of the modality table: an X2L interface, from an encoder's features to the LLM's embeddings.

    Args:
        encoder: the tower whose features are converted: "vision", "audio", a name of `XLLMConfig.extra_encoders`, or
            `None` when the inputs are feature vectors already.
        input_name, mask_name: arguments of `forward` that carry this modality and its mask (1 = real frame), e.g.
            "input_features", "input_features_mask". Several rows may read the same ones.
        part: type of the content parts that feed this row; by default the type that gives `input_name`.
        converter: "qformer" (a fixed number of query tokens per image or frame), "cformer" (as many tokens as the CIF
            fires), "linear" (one token per feature vector) or a name given to `register_converter`.
        shares_converter_with: row whose converter is used (a Q-Former with its own query tokens).
        placeholder_token, token_id: what stands for one quasi-linguistic embedding in the text.
        num_query_tokens: tokens per image or frame (Q-Former only; 32 in the paper).
        num_frames: given for items that are series of pictures: frames the processor samples.
        subsampling_factor: input frames (or samples) per encoder frame, times `frames_per_token`; a clip of n owns
            ceil(n / factor) placeholders, where the converter gives no fixed number. Filled in for the encoders that
            `speech_encoders` knows; 1 for others.
        frames_per_token: encoder frames that become one token together: of a linear converter their mean, of a
            Q-Former with `num_query_tokens=1` what its query reads in them. By default a linear converter makes a
            token of each, and a Q-Former reads the whole item.
        vectors_per_frame: that the encoder gives (patches of a spectrum); filled in.
        token_level: C-Former without an encoder only: the inputs `(clips, U, cif_hidden_size)` are tokens that a CIF
            has fired before, such as the authors' `.npy` features; neither encoder nor CIF is run.
        adapter_activation: activation after the adapter's Linear; "relu" for the S-Adapter.
        converter_config: sizes of the converter; `None` where it has none, or shares another row's.
            Without `initializer_range`, fresh weights get a standard deviation of 1 / sqrt(width). Older names:
            `qformer_config`, `cformer_config`.
        encoder_hidden_size, language_hidden_size: widths in and out, filled in by `XLLMConfig`.

    Raises:
        ValueError: an unknown converter or field, or fields that do not suit the converter.
    """

    model_type = "xllm_interface"

    encoder: str | None = "vision"
    input_name: str = "pixel_values"
    mask_name: str | None = None
    part: str | None = None
    converter: str = "qformer"
    shares_converter_with: str | None = None
    placeholder_token: str = "<ImageHere>"
    token_id: int | None = None
    num_query_tokens: int = 32
    num_frames: int | None = None
    subsampling_factor: int | None = None
    frames_per_token: int | None = None
    vectors_per_frame: int = 1
    token_level: bool = False
    adapter_activation: str | None = None
    converter_config: dict | PreTrainedConfig | None = None
    encoder_hidden_size: int | None = None
    language_hidden_size: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self._take_older_names(kwargs)
        if unknown := set(kwargs) - set(PreTrainedConfig().to_dict()) - {"transformers_version"}:
            raise ValueError(f"a modality row has no field {', '.join(map(repr, sorted(unknown)))}")
        self.complete()
        super().__post_init__(**kwargs)

    def _take_older_names(self, fields: dict) -> None:
        """`converter_config` under another name, popped from `fields`; it must belong to this converter."""
        kind = converter_class(self.converter)
        for key in {kind.config_key for kind in CONVERTERS.values()} - {None}:
            if (value := fields.pop(key, None)) is None:
                continue
            if key != kind.config_key:
                raise ValueError(f"{key} does not belong to a {self.converter!r} converter; leave it out")
            if self.converter_config is not None and kind.config_class is not None:
                given, older = (kind.config_class(**_fields(one)) for one in (self.converter_config, value))
                if given.to_dict() != older.to_dict():
                    raise ValueError(f"{key} is an older name of converter_config, and the two differ; give one")
            self.converter_config = value

    def complete(self) -> None:
        """Make the converter's config what its class takes, and let the class check the row."""
        kind, sizes = converter_class(self.converter), self.converter_config
        if self.shares_converter_with is not None or kind.config_class is None:
            if sizes is not None:
                why = f"{kind.__name__} has no sizes" if kind.config_class is None else "the row shares another's"
                raise ValueError(f"converter_config must be None: {why}")
        elif not isinstance(sizes, kind.config_class):
            values = {**(kind.token_level_sizes if self.token_level else {}), **_fields(sizes)}
            taken = kind.config_class.model_type
            if (given := values.pop("model_type", taken)) != taken:
                what = f"a {self.converter!r} converter takes {taken!r}"
                raise ValueError(f"converter_config is of model_type {given!r}, but {what}")
            self.converter_config = own = kind.config_class(**values)
            if "initializer_range" not in values and {"initializer_range", "hidden_size"} <= vars(own).keys():
                # BERT's 0.02 would let a fraction of its input through a narrow converter that starts at random.
                own.initializer_range = own.hidden_size**-0.5
        kind.check_row(self)

    qformer_config = _older_name("qformer_config")
    cformer_config = _older_name("cformer_config")

    @property
    def positions_per_frame(self) -> int:
        """Input positions per encoder frame."""
        return (self.subsampling_factor or 1) // (self.frames_per_token or 1)

    @property
    def tokens_per_item(self) -> int | None:
        """Placeholders of one picture or item; `None`: one per `subsampling_factor` input positions."""
        return converter_class(self.converter).tokens_per_item(self)


def default_modalities() -> dict[str, X2LConfig]:
    """The paper's three rows: image and video through a Q-Former, speech through a C-Former."""
    return {
        "image": X2LConfig(),
        "video": X2LConfig(
            input_name="pixel_values_videos",
            mask_name="video_frame_mask",
            placeholder_token="<VideoHere>",
            shares_converter_with="image",
            num_frames=5,
        ),
        "speech": X2LConfig(
            encoder="audio",
            input_name="input_features",
            mask_name="input_features_mask",
            converter="cformer",
            placeholder_token="<SpeechHere>",
            adapter_activation="relu",
        ),
    }


@strict
class XLLMConfig(PreTrainedConfig):
    """Configuration of `XLLMForConditionalGeneration`.

    Args:
        text_config: any causal language model; default `ChatGLMConfig()`.
        vision_config: image encoder; default EVA-CLIP ViT-g as `Blip2VisionConfig`.
        audio_config: speech encoder over log-mel frames; default a Conformer with 8x convolutional subsampling.
        extra_encoders (`dict[str, config]`): further towers, by name.
        modalities (`dict[str, X2LConfig | dict]`): the table; default `default_modalities()`.
        image_token_id, video_token_id, audio_token_id (`int`, *optional*): the rows' placeholder ids under the names
            that `generate` and the pipelines read.
        towers (`dict[str, dict]`, *optional*): in a stage checkpoint, where each frozen part comes from.
        adapter (`dict`, *optional*): in a checkpoint, where an adapter of the language model lies: `folder`, `sha256`.
        stage (`dict`, *optional*): which stage and modalities this checkpoint was trained in.
        lineage (`list[dict]`, *optional*): per stage: interfaces before and after, data, frozen tensors.

    Raises:
        ValueError: an unknown encoder, converter or shared row, an encoder_hidden_size that is not its encoder's, two
            rows with one token, a placeholder id far outside the LLM's vocabulary. The message names the row.
    """

    model_type = "xllm"
    sub_configs_defaults = {
        "text_config": ChatGLMConfig,
        "vision_config": Blip2VisionConfig,
        "audio_config": ParakeetEncoderConfig,
    }
    keys_to_ignore_at_inference = ["past_key_values", "modality_features"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    extra_encoders: dict | None = None
    modalities: Any = None  # a mapping; checked below, where the message can name the row
    image_token_id: int | None = None
    video_token_id: int | None = None
    audio_token_id: int | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    towers: dict | None = None
    adapter: dict | None = None
    stage: dict | None = None
    lineage: list | None = None

    def __post_init__(self, **kwargs):
        kwargs.pop("weight_files", None)  # digests of the files beside a config.json, see weight_files.py
        # EVA's published initializer_range is 1e-10, a constant network until weights are loaded.
        vision_default = Blip2VisionConfig(initializer_range=self.initializer_range)
        audio_default = ParakeetEncoderConfig(hidden_size=512, num_hidden_layers=12, intermediate_size=2048)
        self.text_config = _as_config(self.text_config, ChatGLMConfig(), "text_config")
        if not hasattr(self.text_config, "hidden_size"):  # of a model that reads media itself
            raise ValueError(f"text_config: a {self.text_config.model_type} has no hidden_size; give its text_config")
        self.vision_config = _as_config(self.vision_config, vision_default, "vision_config")
        self.audio_config = _as_config(self.audio_config, audio_default, "audio_config")
        extra = sorted((self.extra_encoders or {}).items())
        self.extra_encoders = {name: _as_config(one, audio_default, f"extra_encoders[{name}]") for name, one in extra}
        rows = default_modalities() if self.modalities is None else self.modalities
        if not isinstance(rows, Mapping):
            raise ValueError(f"modalities must be a mapping from names to rows, got {rows!r}")
        # By name, as config.json lists them: parameters come in this order, and optimizers know them by their number.
        self.modalities = {name: self._row(name, rows[name]) for name in sorted(rows)}
        self._complete_rows()
        self._place_token_ids()
        super().__post_init__(**kwargs)

    @staticmethod
    def _row(name: str, row: X2LConfig | Mapping) -> X2LConfig:
        """A copy of a row: what the caller passed stays as it is."""
        if not isinstance(row, (X2LConfig, Mapping)):
            raise ValueError(f"modalities[{name!r}] must be an X2LConfig or a mapping of its fields, got {row!r}")
        try:
            if isinstance(row, X2LConfig):
                row = deepcopy(row)
                row.complete()  # its fields may have been set since it was made
                return row
            return X2LConfig(**{key: deepcopy(value) for key, value in row.items() if key != "model_type"})
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise ValueError(f"modalities[{name!r}]: {' '.join(str(error).split())}") from error

    def encoder_config(self, name: str) -> PreTrainedConfig | None:
        """Config of the tower called `name` ("vision", "audio" or an extra one); `None` for an unknown name."""
        return {"vision": self.vision_config, "audio": self.audio_config, **self.extra_encoders}.get(name)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        if (decoder or decoder == encoder) and isinstance(self.text_config, PreTrainedConfig):
            return self.text_config  # not looked for by four names, which every decoded token would do five times
        return super().get_text_config(decoder, encoder)

    def _complete_rows(self) -> None:
        """Fill in the widths that follow from the towers, and check each row against the rest of the table."""
        for name, row in self.modalities.items():
            self._complete_width(f"modalities[{name!r}]", row)
            joined = row.frames_per_token or 1
            row.subsampling_factor = row.subsampling_factor or joined
            if row.subsampling_factor % joined:
                many = f"is no multiple of frames_per_token ({joined})"
                raise ValueError(f"modalities[{name!r}].subsampling_factor is {row.subsampling_factor}, which {many}")
            row.language_hidden_size = self.text_config.hidden_size
        for name, row in self.modalities.items():
            self._check_shared_row(f"modalities[{name!r}]", row)
            try:
                converter_class(row.converter).check_table(row, self.row_of_converter(name))
            except ValueError as error:
                raise ValueError(f"modalities[{name!r}]: {error}") from error
        tokens = [row.placeholder_token for row in self.modalities.values()]
        if len(set(tokens)) < len(tokens):
            raise ValueError(f"two rows of modalities have the same placeholder_token: {', '.join(tokens)}")

    def _complete_width(self, where: str, row: X2LConfig) -> None:
        if row.encoder is None:
            if row.encoder_hidden_size is None:
                raise ValueError(f"{where} has no encoder, so encoder_hidden_size (width of its inputs) must be given")
            return
        if (encoder := self.encoder_config(row.encoder)) is None:
            known = ", ".join(["vision", "audio", *self.extra_encoders])
            raise ValueError(f"{where}.encoder is {row.encoder!r}; the towers are {known}")
        width = output_width(encoder)
        if (given := row.encoder_hidden_size) not in (None, width):
            wide = f"but the features of its encoder ({encoder.model_type}) are {width} wide; leave it out"
            raise ValueError(f"{where}.encoder_hidden_size is {given}, {wide}")
        row.encoder_hidden_size = width
        if (rule := speech_input(encoder)) is not None:
            factor, row.vectors_per_frame = rule.stride * (row.frames_per_token or 1), rule.vectors
            if row.subsampling_factor not in (None, factor):
                rate = f"{encoder.model_type} gives one frame for {rule.stride} of its inputs; leave it out"
                raise ValueError(f"{where}.subsampling_factor is {row.subsampling_factor}, but {rate}")
            row.subsampling_factor = factor

    def _check_shared_row(self, where: str, row: X2LConfig) -> None:
        if (name := row.shares_converter_with) is None:
            return
        other = self.modalities.get(name)
        if other is None or other.shares_converter_with is not None:
            raise ValueError(f"{where}.shares_converter_with: no row {name!r} has its own converter")
        if other.converter != row.converter:
            kinds = f"a {row.converter!r}, so it cannot share the converter of {name!r}, a {other.converter!r}"
            raise ValueError(f"{where} is {kinds}")

    def _place_token_ids(self) -> None:
        """Rows and the top-level `*_token_id` fields hold the same ids; whichever is given fills the other."""
        for field, input_name in (
            ("image_token_id", "pixel_values"),
            ("video_token_id", "pixel_values_videos"),
            ("audio_token_id", "input_features"),
        ):
            if (name := self.row_that_reads(input_name)) is not None:
                row = self.modalities[name]
                row.token_id = getattr(self, field) if row.token_id is None else row.token_id
                setattr(self, field, row.token_id)
        vocab_size = self.text_config.vocab_size
        ids = {name: row.token_id for name, row in self.modalities.items() if row.token_id is not None}
        for name, token_id in ids.items():
            if not 0 <= token_id < vocab_size + IDS_BEHIND_VOCABULARY:
                where = f"modalities[{name!r}].token_id {token_id}"
                raise ValueError(f"{where} is outside the LLM's vocabulary ({vocab_size}), and not right behind it")
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"two rows of modalities have the same token_id: {ids}")

    def set_token_ids(self, **ids: int) -> None:
        """Set the placeholder ids of modalities by name (`set_token_ids(image=5)`), checked as in a new config."""
        self._check_names(ids)
        for name, token_id in ids.items():
            self.modalities[name].token_id = token_id
        self._place_token_ids()

    def _check_names(self, names: Iterable[str]) -> None:
        if unknown := [name for name in names if name not in self.modalities]:
            raise ValueError(f"modalities: no row {', '.join(unknown)}; the rows are {', '.join(self.modalities)}")

    def with_modalities(self, names: list[str]) -> "XLLMConfig":
        """A copy with these rows only, and those whose converter they share; an error for a name that is none."""
        self._check_names(names)
        kept = {*names, *(self.modalities[name].shares_converter_with for name in names)}
        config = deepcopy(self)
        config.modalities = {name: row for name, row in config.modalities.items() if name in kept}
        return config

    def row_that_reads(self, input_name: str) -> str | None:
        """Name of the row, the first if there are several, that the argument `input_name` of `forward` feeds."""
        return next((name for name, row in self.modalities.items() if row.input_name == input_name), None)

    def row_of_converter(self, name: str) -> X2LConfig:
        """The row that owns the converter used by row `name` (itself, unless it shares another's)."""
        row = self.modalities[name]
        return row if row.shares_converter_with is None else self.modalities[row.shares_converter_with]

    @PreTrainedConfig._attn_implementation.setter
    def _attn_implementation(self, value: str | dict | None) -> None:
        of_all = not isinstance(value, str) or value in ATTENTION_OF_ALL_PARTS
        PreTrainedConfig._attn_implementation.fset(self, value if of_all else {"": value, "text_config": value})
        # transformers passes it on to `sub_configs` only; converters and further towers follow the model as a whole.
        rows = self.modalities.values()
        for config in (*rows, *(row.converter_config for row in rows), *self.extra_encoders.values()):
            if config is not None and of_all:
                config._attn_implementation = self._attn_implementation

    def to_dict(self) -> dict:
        output = super().to_dict()
        for field in ("modalities", "extra_encoders"):
            output[field] = {name: value.to_diff_dict() for name, value in getattr(self, field).items()}
            for value in output[field].values():
                value.pop("transformers_version")
                # Rows without them look as they did before there were any.
                for added in ("frames_per_token", "vectors_per_frame"):
                    if added in value and value[added] == getattr(X2LConfig, added):
                        del value[added]
        if "AutoConfig" in output.get("auto_map", {}):  # transformers names this file; its package is not the model's
            output["auto_map"]["AutoConfig"] = "modeling_xllm.XLLMConfig"
        return output


__all__ = ["X2LConfig", "XLLMConfig", "default_modalities"]
