# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What transformers expects of any model's interface, where its own suites once found us wanting."""

import pytest
import torch
from tiny import FRAMES, IMAGE, PAD, PIXELS, QUERIES, VOCAB, left_pad, mixed_rows, speech, tiny_config, tiny_model
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import ModelOutput

from xllm import XLLMForConditionalGeneration


def image_row() -> dict:
    """Two words, an image, two words."""
    return {**left_pad([[11, 12, *[IMAGE] * QUERIES, 13, 14]]), "pixel_values": torch.randn(1, 3, PIXELS, PIXELS)}


def attention_of_parts(config) -> dict[str, str]:
    """Module name -> attention implementation, of every model inside an X-LLM."""
    parts = XLLMForConditionalGeneration(config).named_modules()
    return {name: part.config._attn_implementation for name, part in parts if isinstance(part, PreTrainedModel)}


def test_the_attention_asked_for_reaches_every_part():
    config = tiny_config("llama")
    config._attn_implementation = "eager"
    used = attention_of_parts(config)
    assert "model.interfaces.image.converter.qformer" in used
    assert any(name.startswith("model.interfaces.speech.converter") for name in used)
    assert set(used.values()) == {"eager"}


def test_a_sub_config_may_ask_for_another_attention():
    config = tiny_config("llama")
    config._attn_implementation = {"": "eager", "text_config": "sdpa"}
    used = attention_of_parts(config)
    assert used["model.language_model"] == "sdpa"
    assert {way for name, way in used.items() if name.startswith("model.interfaces")} == {"eager"}


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dtype_auto_is_the_stored_one(tmp_path, name, stored):
    tiny_model("llama").to(stored).save_pretrained(tmp_path)
    assert XLLMForConditionalGeneration.from_pretrained(tmp_path, **{name: "auto"}).dtype == stored
    assert XLLMForConditionalGeneration.from_pretrained(tmp_path, **{name: "float16"}).dtype == torch.float16


def test_features_of_a_video_keep_its_frames_together():
    model = tiny_model("llama")
    videos = torch.randn(2, FRAMES, 3, PIXELS, PIXELS)
    full = model.get_video_features(videos).last_hidden_state
    tokens = (PIXELS // 14) ** 2 + 1
    assert full.shape == (2, FRAMES * tokens, 16)
    mask = torch.tensor([[1] * FRAMES, [1] + [0] * (FRAMES - 1)])
    masked = model.get_video_features(videos, mask).last_hidden_state
    torch.testing.assert_close(masked[0], full[0])
    torch.testing.assert_close(masked[1, :tokens], full[1, :tokens])
    assert masked[1, tokens:].eq(0).all()


def test_embedded_text_finds_its_placeholders():
    model, inputs = tiny_model("llama"), image_row()
    with torch.no_grad():
        by_ids = model(**inputs).logits
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(inputs_embeds=embeds, **inputs).logits, by_ids)
        embeds[0, 2] = 0  # one placeholder less
        with pytest.raises(ValueError, match=f"image: the text holds {QUERIES - 1} placeholder tokens"):
            model(inputs_embeds=embeds, **inputs)


def leaves(output) -> list[torch.Tensor]:
    """All tensors of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, ModelOutput):
        output = output.to_tuple()
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else []
    return [leaf for part in parts for leaf in leaves(part)]


def test_a_tuple_holds_what_the_output_holds():
    model = tiny_model("llama")
    inputs = {**image_row(), "output_hidden_states": True, "use_cache": False}
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.full((1, 3), 112)], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs.update(speech(20))
    with torch.no_grad():
        as_output, as_tuple = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    pairs = list(zip(leaves(as_output), leaves(as_tuple), strict=True))
    assert len(pairs) > 10
    assert all(torch.equal(first, second) for first, second in pairs)


def test_the_trainer_evaluates_mixed_batches_with_metrics(tmp_path):
    """`modality_features` are no predictions: batches with other media could not be joined."""
    model = tiny_model("llama")
    rows = [{"input_ids": torch.tensor([ids]), **media} for ids, media in mixed_rows()]
    longest = max(row["input_ids"].shape[1] for row in rows)
    seen = {}

    def collate(batch: list[dict]) -> dict:
        (row,) = batch
        padding = (longest - row["input_ids"].shape[1], 0)
        ids = torch.nn.functional.pad(row["input_ids"], padding, value=PAD)
        mask = torch.nn.functional.pad(torch.ones_like(row["input_ids"]), padding)
        return {**row, "input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    def compute_metrics(prediction) -> dict:
        seen["shape"] = prediction.predictions.shape
        return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    arguments = TrainingArguments(
        tmp_path, per_device_eval_batch_size=1, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, data_collator=collate, eval_dataset=rows, compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    assert seen["shape"] == (len(rows), longest, VOCAB)
    assert 0 <= metrics["eval_right"] <= 1
