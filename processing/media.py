# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Media decoding with Pillow and PyAV only: the three loaders and their one error, gathered under one name."""

from .audio_decoding import load_audio
from .image_decoding import load_image
from .media_sources import MediaError
from .video_decoding import load_video


__all__ = ["MediaError", "load_audio", "load_image", "load_video"]
