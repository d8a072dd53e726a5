# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What transformers expects of any model's interface, where its own suites once found us wanting."""

import random
import sys

import pytest
import torch
from tiny import (
    FRAMES,
    IMAGE,
    PAD,
    PIXELS,
    QUERIES,
    VOCAB,
    batch_of,
    left_pad,
    mixed_rows,
    speech,
    tiny_config,
    tiny_model,
)
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import PreTrainedModel, Trainer, TrainingArguments, masking_utils, modeling_utils
from transformers.integrations import flex_attention as flex_integration
from transformers.utils import ModelOutput
from transformers.utils.generic import is_flash_attention_requested

from xllm import XLLMConfig, XLLMForConditionalGeneration, freeze_for_stage


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


@pytest.mark.parametrize("when", ["made", "switched"])
def test_flash_attention_is_the_language_models_if_it_knows_it(monkeypatch, when):
    """Up to the kernels, which need a GPU: stand-ins say that they are here."""
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_import_error", lambda *args, **kwargs: None)
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *args, **kwargs: None)
    cuda = {"supported_devices": [(lambda: True, "cuda")], "general_availability_check": lambda: True}
    matrix = modeling_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX
    monkeypatch.setitem(matrix, 2, {**matrix[2], **cuda})

    def parts(kind: str) -> dict[str, str]:
        config = tiny_config(kind)
        if when == "made":
            config._attn_implementation = "flash_attention_2"
        model = XLLMForConditionalGeneration(config)
        if when == "switched":
            model.set_attn_implementation("flash_attention_2")
        assert is_flash_attention_requested(model.config)
        return {
            name: part.config._attn_implementation
            for name, part in model.named_modules()
            if isinstance(part, PreTrainedModel)
        }

    with pytest.raises(ValueError, match="ChatGLMModel does not support Flash Attention 2"):
        parts("chatglm")
    used = parts("llama")
    assert used.pop("model.language_model") == used.pop("model") == used.pop("") == "flash_attention_2"
    assert len(used) > 4
    assert set(used.values()) == {"sdpa"}


@torch.no_grad()  # flex attention has no backward on the CPU
@pytest.mark.parametrize("kind", ["chatglm", "llama"])
def test_flex_attention_gives_what_sdpa_gives(monkeypatch, kind):
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda _compile, **kwargs: create_block_mask(**kwargs))
    monkeypatch.setattr(flex_integration, "WrappedFlexAttention", lambda training: lambda: flex_attention)
    model, batch = tiny_model(kind), batch_of(mixed_rows())
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    real, expected, said = batch["attention_mask"].bool(), model(**batch).logits, model.generate(**batch, **options)
    model.set_attn_implementation("flex_attention")
    assert model.model.language_model.config._attn_implementation == "flex_attention"
    torch.testing.assert_close(model(**batch).logits[real], expected[real], atol=1e-5, rtol=1e-4)
    assert torch.equal(model.generate(**batch, **options), said)
    model.set_attn_implementation("eager")
    assert model.model.vision_tower.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation({"text_config": "sdpa"})  # of one part, which says nothing of the whole
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "eager"


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
    """Batches of other media are joined (`modality_features` are no predictions), and say what each row does alone."""
    model, rows = tiny_model("llama"), mixed_rows()
    longest = max(len(ids) for ids, _ in rows)
    seen = {}

    def collate(some: list[tuple]) -> dict:
        batch = batch_of([(ids, media) for ids, media in some])
        padding = (longest - batch["input_ids"].shape[1], 0)
        ids = torch.nn.functional.pad(batch.pop("input_ids"), padding, value=PAD)
        mask = torch.nn.functional.pad(batch.pop("attention_mask"), padding)
        return {**batch, "input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    def compute_metrics(prediction) -> dict:
        seen["logits"], seen["labels"] = map(torch.from_numpy, (prediction.predictions, prediction.label_ids))
        return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    arguments = TrainingArguments(
        tmp_path, per_device_eval_batch_size=2, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, data_collator=collate, eval_dataset=rows, compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    assert seen["logits"].shape == (len(rows), longest, VOCAB)
    right = 0
    for row, logits, labels in zip(rows, seen["logits"], seen["labels"], strict=True):
        (alone,) = model(**batch_of([row])).logits.detach()
        words = torch.tensor(row[0]) < IMAGE  # placeholders that no token fills have scores of no meaning
        torch.testing.assert_close(logits[-len(alone) :][words], alone[words], atol=1e-4, rtol=1e-4)
        right += int((logits.argmax(-1) == labels).sum())
    assert metrics["eval_right"] == pytest.approx(right / seen["labels"].numel())


@pytest.mark.parametrize("name", ["image", "video", "speech"])
@pytest.mark.parametrize("trains_tower", [False, True])
def test_a_process_without_a_modality_runs_what_others_train(name, trains_tower, monkeypatch):
    """Zero, with a gradient of zero for each trained parameter; the tower is run only if it is trained."""
    monkeypatch.setattr("xllm.modeling_xllm.cformer.world_size", lambda: 2)
    model = tiny_model("llama").requires_grad_(False)
    assert model.model.stand_in(name) is None  # nothing is trained
    encoder, interface = model.model, model.model.interfaces[name]
    interface.requires_grad_(True)
    tower = encoder.tower(model.config.modalities[name].encoder)
    tower.requires_grad_(trains_tower)
    runs = []
    tower.register_forward_hook(lambda *_: runs.append(1))
    model.train()
    loss = encoder.stand_in(name)
    assert loss.item() == 0
    loss.backward()
    assert len(runs) == trains_tower
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = [parameter.grad for parameter in trained if parameter.grad is not None]
    assert not any(grad.any() for grad in reached)
    assert len(reached) >= 0.9 * len(trained)  # an encoder's pooler, say, has no part in it


def modes_by_the_rule(model, mode: bool) -> dict:
    """What `train(mode)` says of each module: a part without anything that is trained is in eval mode as a whole."""

    def trained(module) -> bool:
        return mode and any(parameter.requires_grad for parameter in module.parameters())

    found = dict.fromkeys(model.modules(), mode)
    wholes = [model.lm_head, model.model.vision_tower, model.model.audio_tower, model.model.language_model]
    for interface in model.model.interfaces.values():
        for part in interface.children():
            found |= dict.fromkeys(part.modules(), trained(part))
            wholes += [child for child in part.children() if any(True for _ in child.parameters())]
    for whole in wholes:
        found |= dict.fromkeys(whole.modules(), trained(whole))
    return found


def test_what_is_frozen_stays_in_eval_mode_whatever_it_was_in():
    model = tiny_model("chatglm")
    names, rng = sorted({name.rsplit(".", 2)[0] for name, _ in model.named_parameters()}), random.Random(0)
    for round_number in range(24):
        model.requires_grad_(False)
        trained = rng.sample(names, rng.choice((0, 1, 3, len(names))))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(trained)))
        for module in model.modules():
            module.training = rng.random() < 0.5 if round_number % 3 else False
        for mode in (True, True, False):
            model.train(mode)
            assert {module: module.training for module in model.modules()} == modes_by_the_rule(model, mode)


def test_setting_the_mode_of_a_frozen_tower_calls_nothing_per_module():
    """The Trainer calls `train()` before each step: at the paper's depth a call per module cost 13 ms."""
    with torch.device("meta"):
        model = XLLMForConditionalGeneration(XLLMConfig())
    freeze_for_stage(model, 2)
    model.train()
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(1) if event == "call" else None)
    try:
        model.train()
    finally:
        sys.setprofile(None)
    assert sum(1 for _ in model.model.language_model.modules()) > 200
    assert len(calls) < sum(1 for _ in model.model.interfaces.modules()) * 5
    assert model.training
    assert not model.model.language_model.training


def test_features_have_the_states_and_the_attentions_of_their_tower_when_asked():
    model, inputs = tiny_model(), image_row()["pixel_values"]
    model.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    features, tower = model.get_image_features(inputs, **asked), model.model.vision_tower(inputs, **asked)
    for name in ("hidden_states", "attentions"):
        torch.testing.assert_close(getattr(features, name), getattr(tower, name))
        assert getattr(model.get_image_features(inputs), name) is None
