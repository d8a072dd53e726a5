# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""When each token of a transcript was spoken: from the frames at which CIF fires (paper sec. 3.1) to seconds.

The one place that knows how long a frame of the speech encoder is.
"""

from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from .feature_extraction_cif import XLLMCIFFeatureExtractor
from .speech_features import num_positions


def _as_list(row: Any) -> list:
    return row.tolist() if isinstance(row, (np.ndarray, torch.Tensor)) else list(row)


class TimestampsMixin(ProcessorMixin):
    """For a processor with `tokenizer`, `feature_extractor` and `subsampling_factor`."""

    @property
    def seconds_per_frame(self) -> float:
        """Seconds from one frame of the speech encoder to the next: of an input position, times `subsampling_factor`.

        Raises:
            ValueError: the inputs are tokens that were fired before, and carry no time.
        """
        extractor = self.feature_extractor
        if isinstance(extractor, XLLMCIFFeatureExtractor):
            raise ValueError(
                "time stamps need sound, but this model reads pre-extracted CIF features, without any time"
            )
        # Two lengths: what the first and the last window take of a clip cancels out.
        short, long = (num_positions(extractor, seconds * extractor.sampling_rate) for seconds in (2, 4))
        return 2 * self.subsampling_factor / (long - short)

    def decode(self, token_ids: Any, fire_frames: Any = None, **kwargs: Any) -> Any:
        """The tokenizer's `decode`; with `fire_frames`, `batch_decode` of one transcript."""
        if fire_frames is None:
            return super().decode(token_ids, **kwargs)
        texts, timestamps = self.batch_decode([token_ids], [fire_frames], **kwargs)
        return texts[0], timestamps[0]

    def batch_decode(self, sequences: Any, fire_frames: Any = None, **kwargs: Any) -> Any:
        """The tokenizer's `batch_decode`, and when each token of a transcript was spoken.

        ```python
        >>> ids, fire_frames = recogniser.transcribe(**inputs, return_fire_frames=True)
        >>> texts, timestamps = processor.batch_decode(ids, fire_frames=fire_frames)
        >>> timestamps[0][:2]
        [{'token': 'good', 'start': 0.0, 'end': 0.41}, {'token': 'morning', 'start': 0.41, 'end': 0.93}]
        ```

        Args:
            sequences: rows of token ids.
            fire_frames (*optional*): rows of as many numbers: the end of each token in encoder frames, as CIF gives
                it.
            kwargs: for the tokenizer, e.g. `skip_special_tokens=True`; what is skipped has no time stamp.

        Returns:
            the texts; with `fire_frames` also, per row, a list of `{"token": str, "start": seconds, "end": seconds}`
            (the form of transformers' Parakeet). A token starts where the one before it ended: CIF divides all of the
            clip among its tokens, pauses included. Ids that are a character only together (bytes) are one entry.

        Raises:
            ValueError: a row with more or fewer times than ids, or no known frame rate.
        """
        if fire_frames is None:
            return super().batch_decode(sequences, **kwargs)
        step = self.seconds_per_frame
        sequences, fire_frames = ([_as_list(row) for row in rows] for rows in (sequences, fire_frames))
        if [len(row) for row in sequences] != [len(row) for row in fire_frames]:
            raise ValueError(
                f"fire_frames: got rows of {[len(row) for row in fire_frames]} numbers beside rows of "
                f"{[len(row) for row in sequences]} ids; cut both to the tokens that fired"
            )
        rows = zip(sequences, fire_frames)
        timestamps = [self._timestamps(ids, [0.0, *(step * frame for frame in row)], kwargs) for ids, row in rows]
        return super().batch_decode(sequences, **kwargs), timestamps

    def _timestamps(self, ids: list[int], bounds: list[float], kwargs: dict) -> list[dict]:
        stamps, first = [], 0
        for last in range(len(ids)):
            token = self.tokenizer.decode(ids[first : last + 1], **kwargs)
            if token.endswith("\ufffd") and last + 1 < len(ids):
                continue  # bytes that are no character yet
            if token:
                stamps.append({"token": token, "start": bounds[first], "end": bounds[last + 1]})
            first = last + 1
        return stamps


__all__ = ["TimestampsMixin"]
