# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Text and media to the inputs of X-LLM: one call for everything, placeholders written out to their full number.

Each medium is named in the text by one placeholder token; the processor repeats it as often as the model has embeddings for it:
`num_query_tokens` for an image, that times its frames for a video, and for speech one per encoder frame, `ceil(T / subsampling_factor)`
of T mel frames, an upper bound of the tokens that the C-Former fires (the model masks the rest). The paper (sec. 3.4) wraps the
embeddings as text, `<Image>` ... `</Image>`; the chat template does that.
Deviation from the authors' code: it holds one fixed prompt per task and splits it by string search; any conversation may be written here.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoVideoProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
)
from transformers.processing_utils import MultiModalData

from .audio_decoding import load_audio
from .chat_parts import clean_messages, media_of, with_media_parts
from .feature_extraction_cif import XLLMCIFFeatureExtractor, load_cif_features
from .feature_extraction_xllm import XLLMFeatureExtractor
from .image_decoding import load_image
from .speech_features import extract_speech, num_positions
from .timestamps import TimestampsMixin
from .video_processing_xllm import XLLMVideoProcessor, list_videos


PLACEHOLDERS = {"image_token": "<ImageHere>", "video_token": "<VideoHere>", "audio_token": "<SpeechHere>"}

# A flat keyword of these is meant for the text; only `audio_kwargs={...}` reaches the feature extractor with them.
_TEXT_ONLY_KWARGS = ("padding", "truncation", "max_length", "pad_to_multiple_of", "return_attention_mask")
_PARTS = {
    "image_processor": (AutoImageProcessor, ()),
    "video_processor": (AutoVideoProcessor, (XLLMVideoProcessor,)),
    "feature_extractor": (AutoFeatureExtractor, (XLLMFeatureExtractor, XLLMCIFFeatureExtractor)),
}


def add_placeholder_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, reserved: dict[str, str] | None = None
) -> dict[str, int]:
    """Gives a tokenizer the three placeholder tokens without making the model's embedding larger.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): changed in place; afterwards it has `image_token`, `video_token`, `audio_token` and their
            ids, and saves them.
        vocab_size (`int`): rows of the model's embedding; the new ids must lie below it.
        reserved (`dict[str, str]`, *optional*): tokens of the vocabulary to use as placeholders, for instance
            `{"image_token": "<|reserved_special_token_0|>"}`; the others are added as `<ImageHere>`, `<VideoHere>`, `<SpeechHere>`.

    Returns:
        `dict[str, int]`: the id of each placeholder, by attribute name.

    Raises:
        ValueError: unknown key or token in `reserved`, one token for two placeholders, or no spare row in the embedding.
    """
    reserved = reserved or {}
    unknown = sorted(set(reserved) - set(PLACEHOLDERS))
    if unknown:
        raise ValueError(f"reserved: got the keys {unknown}, expected some of {sorted(PLACEHOLDERS)}")
    vocabulary = tokenizer.get_vocab()
    missing = sorted(token for token in reserved.values() if token not in vocabulary)
    if missing:
        raise ValueError(f"reserved: {missing} are not in the tokenizer's vocabulary")
    tokens = {**PLACEHOLDERS, **reserved}
    if len(set(tokens.values())) < len(tokens):
        raise ValueError(f"reserved: got {reserved}, expected a token of its own for each placeholder")
    new = [token for token in tokens.values() if token not in vocabulary]
    first_free = max(vocabulary.values(), default=-1) + 1
    if new and max(first_free, len(tokenizer)) + len(new) > vocab_size:
        raise ValueError(
            f"no spare rows for {new}: the tokenizer uses {first_free} ids and the model's vocab_size is {vocab_size}; "
            "name tokens of the vocabulary to use instead with reserved={'image_token': ..., ...}"
        )
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer._set_model_specific_special_tokens(tokens)  # what `extra_special_tokens={...}` does at construction
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _flatten(items: Any, is_item: Callable[[Any], bool]) -> list[Any]:
    """Nested lists of media (per row or not) to a flat list."""
    if items is None or is_item(items) or not isinstance(items, (list, tuple)):
        return [] if items is None else [items]
    return [item for entry in items for item in _flatten(entry, is_item)]


def _is_array(item: Any) -> bool:
    return isinstance(item, (np.ndarray, torch.Tensor))


def _is_waveform(item: Any) -> bool:
    return _is_array(item) or (
        isinstance(item, (list, tuple)) and len(item) > 0 and isinstance(item[0], (int, float, np.number))
    )


def _check_rows(name: str, token: str | None, media: Any, text: list[str], is_item: Callable[[Any], bool]) -> None:
    """Where media come as one list per row, each row must hold what its text names; totals alone would hide a swap."""
    if not isinstance(media, (list, tuple)) or len(media) != len(text) or token is None:
        return
    if any(is_item(row) or not isinstance(row, (list, tuple)) for row in media):
        return
    for index, (row, sample) in enumerate(zip(media, text)):
        named, given = str(sample).count(token), len(_flatten(row, is_item))
        if named != given:
            raise ValueError(f"row {index}: its text names {named} {name} ({token}), {given} are given for it")


def _split_batch(images: Any) -> Any:
    """A 4-D array of images to a list of them."""
    return list(images) if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4 else images


class XLLMProcessor(TimestampsMixin):
    """Image processor, video processor, feature extractor and tokenizer behind one call.

    ```python
    >>> messages = [{"role": "user", "content": [{"type": "image", "path": "cat.jpg"}, {"type": "text", "text": "What is it?"}]}]
    >>> inputs = processor.apply_chat_template(
    ...     messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    ... )
    >>> processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```

    Args:
        image_processor, video_processor, feature_extractor (*optional*): the media that the model knows; leave out the others. The
            feature extractor is the one that the speech encoder was trained with, ours or one of transformers.
        tokenizer (`PreTrainedTokenizerBase`): with the attributes `image_token`, `video_token`, `audio_token` for the media above
            (see `add_placeholder_tokens`).
        chat_template (`str`, *optional*): Jinja template; by default the tokenizer's, taught to write media parts if it cannot, or else
            a plain one.
        num_query_tokens (`int`, *optional*, defaults to 32): embeddings per image and per video frame.
        subsampling_factor (`int`, *optional*, defaults to 8): mel frames (or samples) per frame of the speech encoder.
    """

    text_kwargs = {"padding": True}

    def __init__(
        self,
        image_processor: Any = None,
        video_processor: Any = None,
        feature_extractor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        num_query_tokens: int = 32,
        subsampling_factor: int = 8,
    ):
        if tokenizer is None:
            raise ValueError("tokenizer: got None, expected a tokenizer; only the media parts may be left out")
        for name, value in (("num_query_tokens", num_query_tokens), ("subsampling_factor", subsampling_factor)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")
        parts = {
            "image_processor": image_processor,
            "video_processor": video_processor,
            "feature_extractor": feature_extractor,
            "tokenizer": tokenizer,
        }
        absent = [name for name, part in parts.items() if part is None]
        parts = {name: part for name, part in parts.items() if part is not None}
        # The base class wants every part it knows of; this object has only these (a partial can be pickled, a lambda cannot).
        self.get_attributes = functools.partial(list, parts)
        self.num_query_tokens = num_query_tokens
        self.subsampling_factor = subsampling_factor
        self._set_placeholders(tokenizer, parts)
        if chat_template is None:
            chat_template = with_media_parts(tokenizer.chat_template, self._placeholder_table())
        super().__init__(**parts, chat_template=chat_template)
        for name in absent:
            setattr(self, name, None)

    def _set_placeholders(self, tokenizer: PreTrainedTokenizerBase, parts: dict[str, Any]) -> None:
        """Copies the placeholder tokens and ids from the tokenizer, where the base class looks for them."""
        needed = {
            "image_processor": "image_token",
            "video_processor": "video_token",
            "feature_extractor": "audio_token",
        }
        for part, attribute in needed.items():
            token = getattr(tokenizer, attribute, None)
            if token is None and part in parts:
                raise ValueError(
                    f"the tokenizer has no {attribute}, which the {part} needs: call add_placeholder_tokens(tokenizer, vocab_size) first"
                )
            setattr(self, attribute, token)
            setattr(self, f"{attribute}_id", None if token is None else tokenizer.convert_tokens_to_ids(token))

    def _placeholder_table(self) -> dict[str, str]:
        """Content part type -> placeholder token."""
        table = {"image": self.image_token, "video": self.video_token, "audio": self.audio_token}
        return {kind: token for kind, token in table.items() if token is not None}

    # ---- how many placeholders --------------------------------------------------------------------------------------------------

    def num_audio_placeholders(self, num_frames: int) -> int:
        """Placeholders of a clip with `num_frames` mel frames: `ceil(num_frames / subsampling_factor)`."""
        return -(-num_frames // self.subsampling_factor)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token * self.num_query_tokens

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        return self.video_token * (self.num_query_tokens * int(video_inputs["video_frame_mask"][video_idx].sum()))

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs: Any) -> str:
        return self.audio_token * self.num_audio_placeholders(
            int(audio_inputs["input_features_mask"][audio_idx].sum())
        )

    def _get_num_multimodal_tokens(
        self,
        image_sizes: list[Any] | None = None,
        video_sizes: list[Any] | None = None,
        audio_lengths: list[int] | None = None,
        **kwargs: Any,
    ) -> MultiModalData:
        """Placeholder counts from sizes alone: images (any size), videos `(frames read, H, W)`, sounds in samples."""
        counts: dict[str, list[int]] = {}
        if image_sizes is not None:
            counts["num_image_tokens"] = [self.num_query_tokens] * len(image_sizes)
            counts["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            counts["num_video_tokens"] = [self.num_query_tokens * size[0] for size in video_sizes]
        if audio_lengths is not None:
            frames = [num_positions(self.feature_extractor, length) for length in audio_lengths]
            counts["num_audio_tokens"] = [self.num_audio_placeholders(count) for count in frames]
        return MultiModalData(**counts)

    # ---- one call ---------------------------------------------------------------------------------------------------------------

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
            images, videos, audio (*optional*): media in order of their placeholders in `text`, flat or as one list per row; each a
                path, URL, encoded bytes, PIL image, array, or dict with `bytes`, `path` or `array` + `sampling_rate`.
            text (`str` or `list[str]`, *optional*): rows with one placeholder token per medium.
            kwargs: for the parts; as `text_kwargs={...}`, `images_kwargs`, `videos_kwargs`, `audio_kwargs`, or flat. A flat `padding`,
                `truncation` or `max_length` is for the text only. Rows are padded on the left unless `padding_side` says otherwise.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(rows, L)`; `pixel_values` `(images, 3, H, W)`; `pixel_values_videos`
            `(videos, T, 3, H, W)` and `video_frame_mask` `(videos, T)`; `input_features` `(clips, frames, 80)` and
            `input_features_mask` `(clips, frames)`; what is not given is absent.

        Raises:
            MediaError: a medium that cannot be read.
            ValueError: numbers of placeholders and media differ, truncation cuts placeholders, media of a kind this processor lacks.
        """
        return super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Puts text into a list and media into flat lists, decoding images and sound (videos are decoded when frames are chosen)."""
        if isinstance(text, str):
            text = [text]
        for name, part, given in (
            ("images", "image_processor", images),
            ("videos", "video_processor", videos),
            ("audio", "feature_extractor", audio),
        ):
            if given is not None and getattr(self, part) is None:
                raise ValueError(f"{name} were given, but this processor has no {part}")
        if text is not None and not kwargs.get("sanitize_control_tokens"):
            _check_rows("images", self.image_token, images, text, _is_array)
            _check_rows("audio", self.audio_token, audio, text, _is_waveform)
        images = [load_image(image) for image in _flatten(_split_batch(images), _is_array)]
        videos = [] if videos is None else list_videos(videos)
        audio = [self._load_clip(clip) for clip in _flatten(audio, _is_waveform)]
        return images or None, None if text is None else list(text), videos or None, audio or None

    def _load_clip(self, clip: Any, source_rate: int | None = None) -> np.ndarray:
        if isinstance(self.feature_extractor, XLLMCIFFeatureExtractor):
            return load_cif_features(clip, self.feature_extractor.feature_size)
        # A bare waveform keeps its rate, which the feature extractor checks against the `sampling_rate` of the call.
        return load_audio(clip, self.feature_extractor.sampling_rate, source_rate)

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> None:
        """Compares the numbers of placeholders and media, kind by kind."""
        # The base class counts only the videos it recognises; ours may be bytes or dicts too.
        names = None if videos is None else [f"video {i}" for i in range(len(videos))]
        super().validate_inputs(images=images, text=text, videos=names, audio=audio, **kwargs)

    def _process_audio(self, audio: list[np.ndarray], **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        processed = extract_speech(self.feature_extractor, audio, **kwargs)
        return processed, [self.replace_audio_token(processed, i) for i in range(len(audio))]

    def _process_videos(self, videos: list[Any], **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        processed = self.video_processor(videos, **kwargs)
        return processed, [self.replace_video_token(processed, i) for i in range(len(videos))]

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, dict]:
        merged = super()._merge_kwargs(*args, **kwargs)
        for name in _TEXT_ONLY_KWARGS:
            if name not in kwargs.get("audio_kwargs", {}):
                merged["audio_kwargs"].pop(name, None)
        if (
            self.feature_extractor is not None
        ):  # files are decoded at its rate, and so must bare waveforms be, unless named otherwise
            merged["audio_kwargs"].setdefault("sampling_rate", self.feature_extractor.sampling_rate)
        # A row of a batch must end where generation goes on.
        if "padding_side" not in kwargs and "padding_side" not in kwargs.get("text_kwargs", {}):
            merged["text_kwargs"]["padding_side"] = "left"
        return merged

    # ---- conversations ----------------------------------------------------------------------------------------------------------

    def _normalize_conversations(self, conversation: Any) -> tuple[list, bool]:
        if not conversation:
            raise ValueError("conversation: got nothing, expected a list of messages")
        conversations, is_batched = super()._normalize_conversations(conversation)
        return [clean_messages(messages) for messages in conversations], is_batched

    def _resolve_audio_loading_params(self, processor_kwargs: dict) -> dict:
        """The caller's `sampling_rate` is the rate of waveforms in the conversation; what goes on has the extractor's."""
        nested = processor_kwargs.get("audio_kwargs", {})
        own = None if self.feature_extractor is None else self.feature_extractor.sampling_rate
        given = processor_kwargs.get("sampling_rate", nested.get("sampling_rate"))
        return {"sampling_rate": own, "source_rate": given or own}

    def _multimodal_inputs_from_conversations(
        self, conversations: list[list[dict]], audio_loading_params: dict, load_audio_from_video: bool = False
    ) -> tuple[list, list, list, dict]:
        """Collects the media of cleaned conversations; `load_audio_from_video` is ignored: a video gives frames only."""
        images, videos, audio = [], [], []
        for messages in conversations:
            media = media_of(messages)
            images.append(media["image"])
            videos.append(media["video"])
            if media["audio"] and self.feature_extractor is None:
                raise ValueError("the conversation has an audio part, but this processor has no feature_extractor")
            audio.extend(self._load_clip(clip, audio_loading_params["source_rate"]) for clip in media["audio"])
        return images, videos, audio, {}

    # ---- files ------------------------------------------------------------------------------------------------------------------

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict | None = None, **kwargs: Any
    ) -> list[Any]:
        """Loads the parts that `processor_config.json` names; a part that was left out stays out."""
        processor_dict = processor_dict or {}
        subfolder = kwargs.pop("subfolder", "")
        arguments: list[Any] = []
        for name, (auto_class, own_classes) in _PARTS.items():
            settings = processor_dict.get(name)
            if settings is None:
                arguments.append(None)
                continue
            saved = (settings.get("feature_extractor_type"), settings.get("video_processor_type"))
            part_class = next((own for own in own_classes if own.__name__ in saved), auto_class)
            arguments.append(part_class.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs))
        arguments.append(
            cls._load_tokenizer_from_pretrained(
                "tokenizer", pretrained_model_name_or_path, subfolder=subfolder, **kwargs
            )
        )
        return arguments
