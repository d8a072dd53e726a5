# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Readers of the user's own kinds from the Hub: their sub-folders come from the same revision as the rest."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from processor_parts import word_tokenizer

from xllm.processing.media_kinds import MEDIA_KINDS, MediaKind, register_media_kind
from xllm.processing.media_rows import add_placeholder_tokens
from xllm.processing.processing_xllm import XLLMProcessor


class NumberReader:
    """Holds a number."""

    def __init__(self, number):
        self.number = number

    @classmethod
    def from_pretrained(cls, folder):
        return cls(int(Path(folder, "number.txt").read_text(encoding="utf-8")))

    def save_pretrained(self, folder):
        Path(folder, "number.txt").write_text(str(self.number), encoding="utf-8")


@pytest.mark.parametrize("subfolder", ["", "processor"])
def test_a_reader_comes_from_the_hub(hub, tmp_path, subfolder):
    register_media_kind(MediaKind("number", reader_class=NumberReader))
    try:
        tokenizer = word_tokenizer()
        add_placeholder_tokens(tokenizer, vocab_size=16, modalities={"number": {}})
        processor = XLLMProcessor(tokenizer=tokenizer, readers={"number": NumberReader(7)}, modalities={"number": {}})
        processor.save_pretrained(tmp_path / "repo" / subfolder)
        HfApi().create_repo("user/robot")
        HfApi().upload_folder(folder_path=tmp_path / "repo", repo_id="user/robot")
        assert XLLMProcessor.from_pretrained("user/robot", subfolder=subfolder).readers["number"].number == 7
    finally:
        del MEDIA_KINDS["number"]
