# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How large the demo is: sizes of the stand-ins, numbers of media, steps. `DemoScale()` is what `xllm demo` runs."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Optimisation:
    """Steps of one training and the size of each.

    Args:
        steps, batch_size (`int`): optimiser steps, and samples of each.
        learning_rate (`float`): peak of the schedule (warm-up, then a straight line to nearly 0).
    """

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class DemoScale:
    """Sizes of the demo.

    Args:
        image_pixels, patch_pixels (`int`): what the image encoder reads.
        vision_size, speech_size, language_size, converter_size (`int`): widths of image encoder, speech encoder,
            language model and converters.
        vision_layers, speech_layers, language_layers, qformer_layers, cformer_layers (`int`): their depths.
        num_query_tokens (`int`): embeddings per image and per frame.
        num_frames (`int`): frames of a video.
        num_images, num_videos, num_recordings, num_pairs (`int`): training media of each kind; image + speech pairs.
        num_tests (`int`): test questions of each task.
        test_fraction (`float`): share of the scans that only the test shows.
        num_test_voices (`int`): groups of voices that only the test lets speak.
        vision, speech, language: pretraining of the stand-ins.
        image_convert, speech_convert, image_align, video_align, speech_align, integrate: the stages.
    """

    image_pixels: int = 24
    patch_pixels: int = 4
    vision_size: int = 64
    speech_size: int = 96
    language_size: int = 128
    converter_size: int = 96
    vision_layers: int = 3
    speech_layers: int = 3
    language_layers: int = 3
    qformer_layers: int = 2
    cformer_layers: int = 1
    num_query_tokens: int = 4
    num_frames: int = 4
    num_images: int = 4000
    num_videos: int = 1500
    num_recordings: int = 7000
    num_pairs: int = 2000
    num_tests: int = 200
    test_fraction: float = 0.2
    num_test_voices: int = 12
    vision: Optimisation = field(default_factory=lambda: Optimisation(2000, 64, 2e-3))
    speech: Optimisation = field(default_factory=lambda: Optimisation(1400, 40, 1e-3))
    language: Optimisation = field(default_factory=lambda: Optimisation(800, 64, 1e-3))
    image_convert: Optimisation = field(default_factory=lambda: Optimisation(400, 64, 3e-3))
    speech_convert: Optimisation = field(default_factory=lambda: Optimisation(900, 32, 3e-3))
    image_align: Optimisation = field(default_factory=lambda: Optimisation(400, 64, 2e-3))
    video_align: Optimisation = field(default_factory=lambda: Optimisation(350, 32, 2e-3))
    # At 2e-3 rounding differences alone decide between 6 and 12 % CER.
    speech_align: Optimisation = field(default_factory=lambda: Optimisation(600, 32, 1e-3))
    integrate: Optimisation = field(default_factory=lambda: Optimisation(250, 64, 1e-3))
