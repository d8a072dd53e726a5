# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Encoders as they are published, from `xllm init` over a step of stage 2 to an answer."""

import json

import numpy as np
import pytest
import torch
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image
from published_encoders import ENCODERS, REFUSED
from stage_two import one_step
from transformers import AutoFeatureExtractor, AutoImageProcessor

from xllm.cli import main


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A long and a short one of each kind, and a table of both."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for name, size in (("a", (60, 40, 3)), ("b", (30, 70, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{name}.png")
    for name, seconds in (("a", 1.5), ("b", 0.4)):
        wave = sine(seconds) + 0.05 * rng.standard_normal(int(16_000 * seconds)).astype(np.float32)
        write_wav(folder / f"{name}.wav", [wave])
    for ending in ("png", "wav"):
        (folder / f"{ending}.csv").write_text(f"file,text\na.{ending},a cat\nb.{ending},what\n")
    return folder


def question(part, path):
    return [{"role": "user", "content": [{"type": part, "path": str(path)}, {"type": "text", "text": "what is this"}]}]


def asked(processor, part, *paths):
    return processor.encode_conversations([question(part, path) for path in paths])


def made(llm, encoder, folder):
    """Writes an X-LLM with the published encoder, which it returns, into `folder`."""
    published = encoder.write(folder.parent / "encoder")
    source = f"{encoder.row}={folder.parent / 'encoder'}"
    assert main(["init", str(folder), "--language-model", str(llm), "--encoder", source]) == 0
    return published


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_from_a_published_folder_to_an_answer(llm, media, tmp_path, family):
    encoder = ENCODERS[family]
    published = made(llm, encoder, tmp_path / "m")
    row, ending = encoder.row, "png" if encoder.row == "image" else "wav"
    paths = [media / f"a.{ending}", media / f"b.{ending}"]
    part = {"speech": "audio"}.get(row, row)
    samples = [{"messages": [*question(part, path), {"role": "assistant", "content": "a cat"}]} for path in paths]
    model, processor, _ = one_step(tmp_path / "m", row, samples, tmp_path / "trained")

    tower = model.model.tower(model.config.modalities[row].encoder)
    theirs = published.state_dict()
    own = {key: value for key, value in tower.state_dict().items() if not key.endswith(encoder.lacks or ("\0",))}
    assert all(torch.equal(value, theirs[encoder.prefix + key]) for key, value in own.items())
    reader = processor.reader(part)
    auto = AutoImageProcessor if row == "image" else AutoFeatureExtractor
    expected = auto.from_pretrained(tmp_path / "encoder")
    assert reader.to_dict() == expected.to_dict()
    if row == "image":
        same_pictures(processor, model, expected, paths)
    both = asked(processor, part, *paths)
    for number, path in enumerate(paths):
        alone = model(**asked(processor, part, path)).logits[0, -3:]
        torch.testing.assert_close(model(**both).logits[number, -3:], alone, atol=1e-4, rtol=0)
    assert not torch.allclose(model(**both).logits[0, -3:], model(**both).logits[1, -3:], atol=1e-5)
    answer = model.generate(**both, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] > both["input_ids"].shape[1]


def test_by_commands(llm, media, tmp_path, capsys):
    """The same by recipe and command line, with the encoder whose input has another form than all others'."""
    made(llm, ENCODERS["SigLIP 2 NaFlex"], tmp_path / "m")
    recipe = {"model": str(tmp_path / "m"), "stages": [{"stage": 2, "modalities": ["image"]}]}
    recipe |= {"data": {"train": str(media / "png.csv")}, "output_dir": str(tmp_path / "run")}
    recipe["trainer"] = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    capsys.readouterr()
    assert main(["train", str(tmp_path / "recipe.yaml"), "--json"]) == 0
    last = json.loads(capsys.readouterr().out)["stages"][-1]["checkpoint"]
    write_video(tmp_path / "v.mp4", grey_frames(6))
    files = ["--image", str(media / "a.png"), "--video", str(tmp_path / "v.mp4")]
    assert main(["chat", last, "what is", *files, "--max-new-tokens", "2", "--json"]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)


def same_pictures(processor, model, expected, paths):
    """Pictures, and frames of a film, are what the published preprocessor makes of them; padding is not seen."""
    pictures = [Image.open(path) for path in paths]
    ours = asked(processor, "image", *paths)["pixel_values"]
    theirs = expected(pictures, return_tensors="pt")
    width = theirs["pixel_values"].shape[-1]
    assert torch.equal(ours[..., :width], theirs["pixel_values"])
    film = np.stack([np.asarray(pictures[0])] * 2)
    frames = processor.video_processor([film], num_frames=2, return_tensors="pt")["pixel_values_videos"][0]
    assert torch.equal(frames[1], ours[0])
    video = model.get_features("video", frames[None])
    assert len(video.pooler_output[0]) == 2 * model.config.modalities["video"].tokens_per_item
    if "spatial_shapes" in theirs:
        assert [int((rows[:, -1] > 0).sum()) for rows in ours] == theirs["spatial_shapes"].prod(1).tolist()
        features = model.get_features("image", ours).pooler_output
        spoilt = torch.where(ours[..., -1:] > 0, ours, torch.nn.functional.pad(torch.ones(1, 1, width), (0, 2)))
        assert not torch.equal(spoilt, ours)
        for one, other in zip(model.get_features("image", spoilt).pooler_output, features):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_one_line(llm, tmp_path, capfd, name):
    write, reason, _ = REFUSED[name]
    write(tmp_path / "encoder")
    capfd.readouterr()
    command = ["init", str(tmp_path / "m"), "--language-model", str(llm), "--encoder", f"image={tmp_path / 'encoder'}"]
    assert main(command) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert reason in line
    assert str(tmp_path / "encoder") in line
    assert not (tmp_path / "m").exists()
