# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' pipelines over a saved folder: the same answer as the model and processor themselves."""

import pytest
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image
from transformers import pipeline

from xllm import XLLMForConditionalGeneration


GENERATE = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (40, 30), (255, 0, 0)).save(folder / "red.png")
    write_wav(folder / "low.wav", [sine(frequency=200)])
    write_video(folder / "clip.mp4", grey_frames(10))
    return folder


def messages_about(media, *kinds: str) -> list[dict]:
    files = {"image": "red.png", "audio": "low.wav", "video": "clip.mp4"}
    parts = [{"type": kind, "path": str(media / files[kind])} for kind in kinds]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


@pytest.fixture(scope="module", params=["any-to-any", "image-text-to-text"])
def pipe(request, folder):
    return pipeline(request.param, model=folder, device="cpu")


@pytest.mark.parametrize("kinds", [(), ("image",), ("audio",), ("video",), ("image", "audio", "video", "image")])
def test_a_pipeline_gives_the_model_s_own_answer(pipe, media, kinds):
    assert type(pipe.model) is XLLMForConditionalGeneration
    messages = messages_about(media, *kinds)
    said = pipe(text=messages, generate_kwargs=GENERATE, return_full_text=False)
    inputs = pipe.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    output = pipe.model.generate(**inputs, **GENERATE)[0, inputs["input_ids"].shape[1] :]
    expected = pipe.processor.decode(output, skip_special_tokens=True)
    assert said[0]["generated_text"] == expected


def test_a_pipeline_answers_a_list_of_mixed_conversations(pipe, media):
    rows = [messages_about(media, "image"), messages_about(media), messages_about(media, "audio", "video")]
    together = pipe(text=rows, generate_kwargs=GENERATE, return_full_text=False)
    alone = [pipe(text=row, generate_kwargs=GENERATE, return_full_text=False) for row in rows]
    assert [row[0]["generated_text"] for row in together] == [row[0]["generated_text"] for row in alone]


def test_a_pipeline_takes_images_beside_the_text(pipe):
    image = Image.new("RGB", (40, 30), (0, 0, 255))
    prompt = "<Image><ImageHere></Image>What is this?"
    said = pipe(images=image, text=prompt, generate_kwargs=GENERATE, return_full_text=False)
    inputs = pipe.processor(images=image, text=prompt, return_tensors="pt")
    output = pipe.model.generate(**inputs, **GENERATE)[0, inputs["input_ids"].shape[1] :]
    assert said[0]["generated_text"] == pipe.processor.decode(output, skip_special_tokens=True)
