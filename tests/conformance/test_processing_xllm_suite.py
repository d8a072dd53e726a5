# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' processor, video-processor and feature-extractor suites on ours."""

import unittest

import numpy as np
import pytest
from conformance.suites import import_suite
from conformance.xllm_testers import letter_tokenizer
from transformers import BlipImageProcessor

from xllm import XLLMFeatureExtractor, XLLMProcessor
from xllm.processing.video_processing_xllm import XLLMVideoProcessor


processors = import_suite("test_processing_common")
videos = import_suite("test_video_processing_common")
sequences = import_suite("test_sequence_feature_extraction_common")
SIDE = 18


class XLLMProcessorTest(processors.ProcessorTesterMixin, unittest.TestCase):
    processor_class = XLLMProcessor
    # A flat max_length is also a number of samples to the suite; it must hold a frame of 25 ms.
    audio_unstructured_max_length = 300
    images_input_name = "pixel_values"

    @classmethod
    def _setup_image_processor(cls):
        return BlipImageProcessor(size={"height": SIDE, "width": SIDE})

    @classmethod
    def _setup_video_processor(cls):
        return XLLMVideoProcessor(size={"height": SIDE, "width": SIDE})

    @classmethod
    def _setup_feature_extractor(cls):
        return XLLMFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls):
        return letter_tokenizer()

    @staticmethod
    def prepare_processor_dict():
        return {"num_query_tokens": 2, "subsampling_factor": 4}

    @property
    def video_sampling_expectations(self):
        """Of the suite's film of 11 frames at 30 Hz; frames at 0, 0.1, 0.2 and 0.3 s, five frames by default."""
        return [
            {"num_frames": 3, "fps": None, "expected_dim": 1, "output_length": 3},
            {"num_frames": None, "fps": 10, "expected_dim": 1, "output_length": 4},
            {"do_sample_frames": False, "fps": 10, "expected_dim": 1, "output_length": 11},
            {"do_sample_frames": False, "expected_dim": 1, "output_length": 11},
            {"expected_dim": 1, "output_length": 5},
        ]

    def test_apply_chat_template_video_frame_sampling(self):
        """All but the suite's last demand, an error: here frames given as images are sampled like any film."""
        with pytest.raises(AssertionError, match="ValueError not raised"):
            super().test_apply_chat_template_video_frame_sampling()


class VideoTester:
    """Random videos, and the shape that they should have afterwards."""

    batch_size, num_frames, num_channels = 5, 4, 3
    image_mean = image_std = [0.5, 0.5, 0.5]

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return videos.prepare_video_inputs(
            self.batch_size, self.num_frames, self.num_channels, 30, 80, equal_resolution, return_tensors
        )

    def expected_output_video_shape(self, clips):
        return [self.num_frames, self.num_channels, SIDE, SIDE]


class XLLMVideoProcessorTest(videos.VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = XLLMVideoProcessor

    def setUp(self):
        super().setUp()
        self.video_processor_tester = VideoTester()

    @property
    def video_processor_dict(self):
        return {"size": {"height": SIDE, "width": SIDE}, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5]}

    def test_call_sample_frames(self):
        """All but the suite's last demand, an error: here a film with fewer frames than asked for gives all it has."""
        with pytest.raises(AssertionError, match="ValueError not raised"):
            super().test_call_sample_frames()

    def test_video_processor_from_dict_with_kwargs(self):
        """The suite's own test asks for the sizes of another processor."""
        processor = XLLMVideoProcessor.from_dict(self.video_processor_dict)
        assert processor.size == {"height": SIDE, "width": SIDE}
        processor = XLLMVideoProcessor.from_dict(self.video_processor_dict, size=42, num_frames=3)
        assert (processor.size, processor.num_frames) == ({"height": 42, "width": 42}, 3)


class SequenceTester:
    """Random sequences of mel frames, longer from row to row."""

    batch_size, min_seq_length, max_seq_length, feature_size = 7, 400, 2000, 80
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self):
        return {"feature_size": self.feature_size, "padding_value": 0.0, "do_normalize": False, "min_frequency": 40.0}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        step = 0 if equal_length else self.seq_length_diff
        rows = [np.random.rand(self.min_seq_length + step * row, self.feature_size) for row in range(self.batch_size)]
        return rows if numpify else [row.tolist() for row in rows]


class XLLMFeatureExtractorTest(sequences.SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = XLLMFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = SequenceTester()
