# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""TRL's SFTTrainer on conversations with media: our collator for any medium, TRL's own for images."""

import pytest
import torch
from datasets import Dataset, Image, List
from trl import SFTConfig, SFTTrainer

from xllm import XLLMDataCollator, freeze_for_stage
from xllm.training.saving.lineage import FreezeReceipt


def config(folder, **kwargs) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        max_length=None,
        activation_checkpointing=False,
        **kwargs,
    )


def trained(trainer, model) -> list[str]:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    receipt = FreezeReceipt(model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(torch.isfinite(torch.tensor(losses)))
    receipt.check()
    return [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]


def test_messages_with_any_media_through_our_collator(tiny, media, tmp_path):
    model, processor = tiny
    freeze_for_stage(model, "align")

    def sample(kind, file):
        part = {"type": kind, "path": str(media / file)}
        question = {"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}
        return {"messages": [question, {"role": "assistant", "content": [{"type": "text", "text": "a thing"}]}]}

    rows = [sample("image", "red.png"), sample("audio", "low.wav"), sample("video", "clip.mp4")]
    dataset = Dataset.from_list(rows)
    # Every part now has every key: what a part lacks is None.
    assert dataset[0]["messages"][0]["content"][0] == {"type": "image", "path": str(media / "red.png"), "text": None}
    arguments = config(tmp_path, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = SFTTrainer(
        model, arguments, data_collator=XLLMDataCollator(processor), train_dataset=dataset, processing_class=processor
    )
    moved = trained(trainer, model)
    for modality in ("image", "speech", "video"):
        assert any(name.startswith(f"model.interfaces.{modality}.adapter") for name in moved)
    assert all(name.startswith("model.interfaces.") for name in moved)


def test_images_through_trl_s_own_collator(tiny, media, tmp_path):
    model, processor = tiny
    freeze_for_stage(model, "align", "image")
    conversation = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "red"}]
    dataset = Dataset.from_dict(
        {"messages": [conversation] * 3, "images": [[str(media / "red.png")]] * 3}
    ).cast_column("images", List(Image()))
    trainer = SFTTrainer(model, config(tmp_path), train_dataset=dataset, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    placeholders = batch["input_ids"] == processor.image_token_id
    assert placeholders.sum() == 3 * processor.num_query_tokens
    moved = trained(trainer, model)
    assert moved
    assert all(name.startswith("model.interfaces.image.") for name in moved)


def test_sound_on_trl_s_text_path_is_an_error_and_not_training_without_sound(tiny, media, tmp_path):
    model, processor = tiny
    freeze_for_stage(model, "align", "speech")
    part = {"type": "audio", "path": str(media / "low.wav")}
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a tone"}]},
    ]
    dataset = Dataset.from_list([{"messages": messages}] * 3)
    with pytest.raises(ValueError, match="placeholder tokens but no media is given"):
        SFTTrainer(model, config(tmp_path), train_dataset=dataset, processing_class=processor).train()
