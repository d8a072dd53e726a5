# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Text and media to the inputs of X-LLM: one call for everything, placeholders written out to their full number.

Each medium is named in the text by the placeholder token of its kind; the processor repeats it as often as the model's
rows have embeddings for it (`media_rows`). A kind that several rows read is written as one wrapped run per row, in the
rows' order. The paper (sec. 3.4) wraps the embeddings as text, `<Image>` ... `</Image>`; the chat template does that.
Deviation from the authors' code: it holds one fixed prompt per task and splits it by string search; any conversation
may be written here.
"""

import functools
import json
import os
import posixpath
from collections.abc import Callable
from typing import Any

from huggingface_hub import snapshot_download
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import _MARKED_RE, MultiModalData

from .conversations import ConversationsMixin, with_media_parts
from .media_kinds import AUDIO, IMAGE, MEDIA_KINDS, PAPER_KINDS, VIDEO, MediaKind, media_kind
from .media_rows import PlaceholdersMixin, add_placeholder_tokens, check_number, complete_rows, default_rows
from .speech_features import TimestampsMixin, check_length


# A flat keyword of these is meant for the text; only `audio_kwargs={...}` reaches the feature extractor with them.
_TEXT_ONLY_KWARGS = ("padding", "truncation", "max_length", "pad_to_multiple_of", "return_attention_mask")
# Of the base class, in the order of its arguments.
_READERS = tuple(kind.reader for kind in PAPER_KINDS)
_ARGUMENTS = tuple(kind.inputs for kind in PAPER_KINDS)


class XLLMProcessor(TimestampsMixin, ConversationsMixin, PlaceholdersMixin):
    """Image processor, video processor, feature extractor, readers of your own and tokenizer behind one call.

    ```python
    >>> messages = [{"role": "user", "content": [{"type": "image", "path": "cat.jpg"}, {"type": "text", "text": "What
        is it?"}]}]
    >>> inputs = processor.encode_conversations([messages])
    >>> processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```

    Args:
        image_processor, video_processor, feature_extractor: the media that the model knows; leave out the others. The
            feature extractor is the one that the speech encoder was trained with, ours or one of transformers.
        tokenizer: with a placeholder token per row (see `add_placeholder_tokens`).
        chat_template: Jinja; by default the tokenizer's, taught to write media parts if it cannot, or a plain one.
        readers: of further kinds, by type; see `MediaKind.reader_class`.
        modalities: the model's rows, with the fields of `MediaRow`; by default one per kind, with
        num_query_tokens, subsampling_factor: embeddings per image or video frame, mel frames (or samples) per frame of
            the speech encoder.

    Raises:
        ValueError: no tokenizer, a row whose kind nobody reads here, or whose placeholder the tokenizer lacks.
    """

    text_kwargs = {"padding": True}
    # Called with the folder of a new checkpoint; the installed package copies the user's modules there.
    after_saving: Callable[[str | os.PathLike], None] | None = None

    def __init__(
        self,
        image_processor: Any = None,
        video_processor: Any = None,
        feature_extractor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | dict | None = None,
        num_query_tokens: int = 32,
        subsampling_factor: int = 8,
        readers: dict[str, Any] | None = None,
        modalities: dict[str, dict] | None = None,
    ):
        if tokenizer is None:
            raise ValueError("tokenizer: got None, expected a tokenizer; only the media parts may be left out")
        check_number("num_query_tokens", num_query_tokens)
        check_number("subsampling_factor", subsampling_factor)
        parts = dict(zip(_READERS, (image_processor, video_processor, feature_extractor)))
        absent = [name for name, part in parts.items() if part is None]
        parts = {name: part for name, part in parts.items() if part is not None}
        self.readers = {media_kind(name).type: reader for name, reader in (readers or {}).items()}
        self._rows_given = modalities is not None
        if modalities is None:
            known = tuple(k for k in PAPER_KINDS if k.reader in parts)
            known += tuple(media_kind(name) for name in self.readers)
            modalities = default_rows(known, num_query_tokens, subsampling_factor)
        self.rows = complete_rows(modalities)
        for name, row in self.rows.items():
            if row.kind.reader not in parts and row.part not in self.readers:
                raise ValueError(f"modalities[{name!r}] reads {row.part} parts, but there is no {row.kind.reader}")
        self._place_tokens(tokenizer)
        self.modalities = {name: dict(vars(row)) for name, row in self.rows.items()}
        self.num_query_tokens = self._first(IMAGE, VIDEO, field="tokens_per_item", default=num_query_tokens)
        self.subsampling_factor = self._first(AUDIO, field="subsampling_factor", default=subsampling_factor)
        # The base class wants every part it knows of; this object has only these (a partial can be pickled, a lambda
        # cannot).
        if tokenizer.pad_token is None:  # as Llama's; what is padded is masked
            tokenizer.pad_token = tokenizer.eos_token
        parts["tokenizer"] = tokenizer
        self.get_attributes = functools.partial(list, parts)  # type: ignore[method-assign]  # of this object alone
        if chat_template is None:
            chat_template = with_media_parts(tokenizer.chat_template, self._part_texts())
        super().__init__(**parts, chat_template=chat_template)
        for name in absent:
            setattr(self, name, None)

    def _first(self, *kinds: MediaKind, field: str, default: int) -> int:
        values = (getattr(row, field) for kind in kinds for row in self.rows_of(kind))
        return next((value for value in values if value is not None), default)

    # ---- rows and placeholders --------------------------------------------------------------------------------------

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self._replacement(IMAGE, image_inputs, image_idx)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        return self._replacement(VIDEO, video_inputs, video_idx)

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs: Any) -> str:
        return self._replacement(AUDIO, audio_inputs, audio_idx)

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, audio_lengths: Any = None, **kwargs: Any
    ) -> MultiModalData:
        """Placeholder counts from sizes alone: images (any size), videos `(frames read, H, W)`, sounds in samples."""
        counts: dict[str, list[int]] = {} if image_sizes is None else {"num_image_patches": [1] * len(image_sizes)}
        for kind, sizes in zip(PAPER_KINDS, (image_sizes, video_sizes, audio_lengths)):
            if sizes is not None and kind.count is not None:
                positions = (kind.count(self.reader(kind), size) for size in sizes)
                rows = self.rows_of(kind)
                counts[f"num_{kind.type}_tokens"] = [sum(row.num_placeholders(n) for row in rows) for n in positions]
        return MultiModalData(**counts)

    # ---- media ------------------------------------------------------------------------------------------------------

    def reader(self, kind: MediaKind | str) -> Any:
        """What turns decoded media of a kind into tensors; a `ValueError` if this processor has nothing that does."""
        kind = media_kind(kind)
        found = self.readers.get(kind.type, getattr(self, kind.reader, None))
        if found is None:
            raise ValueError(f"{kind.inputs} were given, but this processor has no {kind.reader}")
        return found

    def load(self, kind: MediaKind | str, source: Any, **kwargs: Any) -> Any:
        """Opens and decodes one medium of a type of content part; the result is taken wherever media are.

        Args:
            source: path, URL, encoded bytes, dict with `bytes`, `path` or `array`, array, or a medium decoded before.
            kwargs: for sound, `source_rate`: rate of bare arrays in Hz.

        Returns:
            a PIL image, `Frames`, a `Waveform`, or what the loader of your kind gives.

        Raises:
            MediaError: it cannot be read.
        """
        kind = media_kind(kind)
        return kind.load(source, self.reader(kind), **kwargs)

    def check_length(self, kind: MediaKind | str, item: Any, instead: str | None = None) -> None:
        """`MediaError` for a decoded sound that is longer than the model hears as a whole; `instead` hears it."""
        kind = media_kind(kind)
        limits = [row.most_positions for row in self.rows_of(kind) if row.most_positions is not None]
        check_length(self.reader(kind), item, min(limits, default=None), instead)

    def _items(self, kind: MediaKind, media: Any, text: list[str] | None) -> list[Any]:
        """The media of one kind as a flat list, decoded; of lists per row, each must hold what its text names."""

        def is_list(value: Any) -> bool:
            return isinstance(value, (list, tuple)) and kind.is_item is not None and not kind.is_item(value)

        token = getattr(self, kind.token_name, None)
        if token and text is not None and is_list(media) and len(media) == len(text) and all(map(is_list, media)):
            for index, (row, sample) in enumerate(zip(media, text)):
                named, given = sample.count(token), len(kind.flatten(row))
                if named != given:
                    raise ValueError(
                        f"row {index}: its text names {named} {kind.inputs} ({token}), {given} are given for it"
                    )
        items = kind.flatten(media)
        return items if kind.load_in_reader else [self.load(kind, item) for item in items]

    # ---- one call ---------------------------------------------------------------------------------------------------

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Text and media to model inputs.

        Args:
            images, videos, audio: media in order of their placeholders in `text`, flat or one list per row; each a
                path, URL, encoded bytes, PIL image, array, dict with `bytes`, `path` or `array` + `sampling_rate`, or
                what `load` gave. Media of your own kinds come under the names of their `MediaKind.inputs`.
            text: rows with one placeholder token per medium, padded on the left unless `padding_side` says otherwise.
            kwargs: for the parts; as `text_kwargs={...}`, `images_kwargs`, `videos_kwargs`, `audio_kwargs`, or flat. A
                flat `padding`, `truncation` or `max_length` is for the text only.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(rows, L)`; `pixel_values` `(images, 3, H, W)`;
            `pixel_values_videos` `(videos, T, 3, H, W)` and `video_frame_mask` `(videos, T)`; `input_features`
            `(clips, frames, 80)` and `input_features_mask` `(clips, frames)`; what is not given is absent.

        Raises:
            MediaError: a medium that cannot be read.
            ValueError: numbers of placeholders and media differ, truncation cuts placeholders, media of a kind this
                processor lacks.
        """
        given = dict(zip(_ARGUMENTS, (images, videos, audio)))
        given |= {kind.inputs: kwargs.pop(kind.inputs) for kind in MEDIA_KINDS.values() if kind.inputs in kwargs}
        own_kwargs = {name: kwargs.pop(f"{media_kind(name).inputs}_kwargs", {}) for name in self.readers}
        text = [text] if isinstance(text, str) else text
        if not (text is None or (isinstance(text, (list, tuple)) and all(isinstance(row, str) for row in text))):
            raise ValueError("`text` must be a string or list of strings.")
        unmarked = None if text is None else [_MARKED_RE.sub("", row) for row in text]  # marked tokens are text
        media = {}
        for kind in MEDIA_KINDS.values():
            if given.get(kind.inputs) is not None:
                self.reader(kind)
                media[kind.type] = self._items(kind, given[kind.inputs], unmarked)
        if text is None and not any(media.values()):
            raise ValueError(f"You need to provide at least one input to call {type(self).__name__}")
        self._check_counts(unmarked, media)
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        replacements: dict[str, list[str]] = {}
        for name, items in media.items():
            if items:
                kind = MEDIA_KINDS[name]
                for item in items:
                    self.check_length(kind, item)
                own = {"return_tensors": "pt", **own_kwargs.get(name, {})}
                processed = kind.read(self.reader(kind), items, **merged.get(f"{kind.inputs}_kwargs", own))
                processed = self._tensors_by_row(kind, processed)
                replacements[name] = [self._replacement(kind, processed, index) for index in range(len(items))]
                data |= processed
        return_tensors = merged["text_kwargs"].get("return_tensors")
        if text is not None:
            data = {**self._encode_text(text, replacements, merged), **data}
        if not kwargs.get("return_metadata"):
            data.pop("video_metadata", None)
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def _encode_text(self, text: list[str], replacements: dict[str, list[str]], merged: dict) -> dict:
        """Ids of the text with its placeholders written out, and what the caller asked for beside them."""
        kwargs = merged["text_kwargs"]
        wants_types, wants_offsets = (
            kwargs.pop(name, merged[name]) for name in ("return_mm_token_type_ids", "return_text_replacement_offsets")
        )
        text, offsets = self._write_out(text, replacements)
        inputs = self.tokenizer(text, **kwargs)
        self._check_special_mm_tokens(text, inputs, [name.removesuffix("_token") for name in self._token_names])
        if wants_offsets:
            inputs["text_replacement_offsets"] = offsets
        if wants_types:
            inputs["mm_token_type_ids"] = self.create_mm_token_type_ids(inputs["input_ids"])
        return inputs

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, dict]:
        merged = super()._merge_kwargs(*args, **kwargs)
        for name in _TEXT_ONLY_KWARGS:
            if name not in kwargs.get("audio_kwargs", {}):
                merged["audio_kwargs"].pop(name, None)
        if self.feature_extractor is not None:
            # Files are decoded at its rate, and so must bare waveforms be, unless their rate is given.
            merged["audio_kwargs"].setdefault("sampling_rate", self.feature_extractor.sampling_rate)
        # A row of a batch must end where generation goes on.
        if "padding_side" not in kwargs and "padding_side" not in kwargs.get("text_kwargs", {}):
            merged["text_kwargs"]["padding_side"] = "left"
        return merged

    # ---- files ------------------------------------------------------------------------------------------------------

    @property
    def model_input_names(self) -> list[str]:
        readers: list[Any] = [*map(media_kind, self.readers), *self.rows.values()]
        names = (name for one in readers for name in (one.input_name, one.mask_name) if name)
        return list(dict.fromkeys([*super().model_input_names, *names]))

    def to_dict(self) -> dict[str, Any]:
        """The settings as `processor_config.json` holds them; readers of your own by the names of their classes."""
        output = super().to_dict()
        output.pop("readers", None)
        if self.readers:
            output["readers"] = {name: type(reader).__name__ for name, reader in self.readers.items()}
        for name in ("num_query_tokens", "subsampling_factor") if self._rows_given else ("modalities",):
            del output[name]
        return output

    def to_json_string(self) -> str:
        """`to_dict` as JSON; the rows keep their order, on which the text depends."""
        return json.dumps(dict(sorted(self.to_dict().items())), indent=2) + "\n"

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """As any processor; readers of your own go to sub-folders named by their kinds."""
        for name, reader in self.readers.items():
            folder = os.path.join(save_directory, name)
            os.makedirs(folder, exist_ok=True)
            reader.save_pretrained(folder)
        files = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        if self.after_saving is not None:
            self.after_saving(save_directory)
        return files

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict | None = None, **kwargs: Any
    ) -> list[Any]:
        """Loads the parts that `processor_config.json` names; a part that was left out stays out."""
        processor_dict = {} if processor_dict is None else processor_dict
        source, subfolder = pretrained_model_name_or_path, kwargs.pop("subfolder", "")
        arguments: list[Any] = []
        for kind in PAPER_KINDS:
            settings = processor_dict.get(kind.reader)
            if settings is None:
                arguments.append(None)
                continue
            part_class = kind.class_of_reader(settings.get(f"{kind.reader}_type"))
            arguments.append(part_class.from_pretrained(source, subfolder=subfolder, **kwargs))
        arguments.append(cls._load_tokenizer_from_pretrained("tokenizer", source, subfolder, **kwargs))
        if names := processor_dict.get("readers"):
            processor_dict["readers"] = _load_readers(names, str(source), subfolder, kwargs)
        return arguments


def _load_readers(names: dict[str, str], source: str, subfolder: str, kwargs: dict) -> dict[str, Any]:
    """Readers from their sub-folders of a folder or a Hub repository."""
    if unknown := [name for name in names if name not in MEDIA_KINDS]:
        raise ValueError(
            f"{source}: processor_config.json names a reader of {unknown[0]} parts ({names[unknown[0]]}), a kind that "
            "is not registered: import the module that registers it first (--module FILE)"
        )
    if not os.path.isdir(source):
        keys = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        access = {name: kwargs[name] for name in keys if name in kwargs}
        patterns = [posixpath.join(subfolder, name, "*") for name in names]
        source = snapshot_download(source, allow_patterns=patterns, **access)
    folders = {name: os.path.join(source, subfolder, name) for name in names}
    classes = {name: MEDIA_KINDS[name].class_of_reader(saved) for name, saved in names.items()}
    return {name: classes[name].from_pretrained(folder) for name, folder in folders.items()}


__all__ = ["XLLMProcessor", "add_placeholder_tokens"]
