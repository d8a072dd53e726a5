# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`data.cache_features`: frozen encoders run in the first epoch alone, and nothing else is different, to the bit."""

import json
import os
import resource
import signal
from functools import wraps

import numpy as np
import pytest
import torch
from media_files import sine, write_wav
from PIL import Image
from safetensors.torch import load_file
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder

from xllm.training import feature_cache
from xllm.training.feature_cache import OLD_PARTS, PARTS, FeatureCache
from xllm.training.saving.lineage import FreezeReceipt
from xllm.training.stages import freeze_for_stage
from xllm.training.train import check, train


TRAINER = {
    "num_train_epochs": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2,
    "use_cpu": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(media):
    """Six pictures that differ, four clips of unequal lengths and a video."""
    noise = np.random.default_rng(0)
    for number in range(4):
        write_wav(media / f"clip{number}.wav", [sine(0.5 + 0.15 * number, frequency=200.0 + 100 * number)])
    for number in range(6):
        Image.fromarray(noise.integers(0, 256, (30, 40, 3), np.uint8)).save(media / f"noise{number}.png")
    tables = {
        "image": "".join(f"noise{number}.png,picture {number}\n" for number in range(6)),
        "speech": "".join(f"clip{number}.wav,{number}\n" for number in range(4)),
        "video": "clip.mp4,it gets brighter\n",
    }
    for name, lines in tables.items():
        (media / f"cached_{name}.csv").write_text("file,text\n" + lines)
    return {name: {"path": str(media / f"cached_{name}.csv"), "modality": name} for name in tables}


@pytest.fixture
def calls(monkeypatch):
    """How many pictures and clips the encoders have read, call by call."""
    found: list[int] = []
    for encoder in (Blip2VisionModel, ParakeetEncoder):

        @wraps(encoder.forward)
        def forward(self, inputs, *args, original=encoder.forward, **kwargs):
            found.append(len(inputs))
            return original(self, inputs, *args, **kwargs)

        monkeypatch.setattr(encoder, "forward", forward)
    return found


def recipe(checkpoint, sources, stage, modalities, output, cache=None, **data):
    own = {"train": [sources[name] for name in modalities], "cache_features": cache and str(cache), **data}
    common = {"model": str(checkpoint), "output_dir": str(output), "report_samples": 0}
    return {**common, "stage": stage, "modalities": modalities, "trainer": TRAINER, "data": own}


def outcome(output):
    """Tensors of a stage, and its log."""
    (folder,) = [path.parent for path in output.glob("*/stage.json")]
    tensors = {
        f"{path.name} {name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    return tensors, [json.loads(line) for line in (folder / "log.jsonl").open()]


def assert_equal(tensors, others):
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


@pytest.mark.parametrize(
    ("stage", "modalities", "items"),
    [(1, ["image"], 6), (2, ["image"], 6), (1, ["speech"], 4), (3, ["image", "video", "speech"], None)],
)
def test_two_epochs_are_those_without_it(tiny_checkpoint, sources, calls, tmp_path, stage, modalities, items):
    runs = {}
    for name in ("without", "first", "second"):
        cache = None if name == "without" else tmp_path / "features"
        calls.clear()
        train(recipe(tiny_checkpoint, sources, stage, modalities, tmp_path / name, cache), progress=False)
        runs[name] = (*outcome(tmp_path / name), sum(calls))
    assert_equal(runs["first"][0], runs["second"][0])
    losses = {name: [entry.get("loss", 0.0) for entry in log] for name, (_, log, _) in runs.items()}
    assert losses["first"] == losses["second"]
    if "speech" in modalities:  # padded with others, a clip has other last bits than alone
        assert losses["first"] == pytest.approx(losses["without"], rel=1e-3)
    else:
        assert_equal(runs["first"][0], runs["without"][0])
        assert losses["first"] == losses["without"]
    encoded = runs["without"][2] // 2  # in an epoch
    assert encoded == items or items is None
    first, second = runs["first"][1][-1], runs["second"][1][-1]
    assert (first["features_computed"], first["features_read"]) == (encoded, encoded)
    assert (second["features_computed"], second["features_read"]) == (0, 2 * encoded)
    assert runs["second"][2] == 0, "another run finds all of them"
    in_epoch_one = [entry for entry in runs["first"][1] if entry["epoch"] <= 1][-1]
    assert (in_epoch_one["features_computed"], in_epoch_one["features_read"]) == (encoded, 0)
    assert list((tmp_path / "features" / PARTS).iterdir()) == []


def test_damaged_files_are_made_again_and_a_run_may_go_on_without(tiny_checkpoint, sources, tmp_path):
    cache = tmp_path / "features"
    train(recipe(tiny_checkpoint, sources, 2, ["image"], tmp_path / "first", cache), progress=False)
    files = sorted(cache.glob("??/*.safetensors"), key=lambda path: path.stat().st_size)
    cut, altered = files[-1], files[-2]
    whole = {path: path.read_bytes() for path in (cut, altered)}
    cut.write_bytes(whole[cut][:-100])
    altered.write_bytes(whole[altered][:-100] + bytes([whole[altered][-100] ^ 1]) + whole[altered][-99:])
    again = recipe(tiny_checkpoint, sources, 2, ["image"], tmp_path / "again", cache)
    train(again, progress=False)
    tensors, log = outcome(tmp_path / "again")
    assert_equal(tensors, outcome(tmp_path / "first")[0])
    assert log[-1]["features_damaged"] == 2
    assert {path: path.read_bytes() for path in (cut, altered)} == whole
    again["data"].pop("cache_features")
    assert check(again, resume=True)[0].endswith("(finished)")


@pytest.fixture
def model(tiny):
    freeze_for_stage(tiny[0], "align", ["image"])
    return tiny[0].train()


def opened(folder, model):
    return FeatureCache(folder, model, FreezeReceipt(model).before)


def encode(model, pictures):
    return model.model.encode("image", pictures)[0].last_hidden_state


def pictures_for(model, count=5):
    size = model.config.vision_config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_another_encoder_preprocessing_or_precision_finds_nothing(model, calls, tmp_path):
    pictures = pictures_for(model)
    with opened(tmp_path, model):
        encode(model, pictures)
    with opened(tmp_path, model) as cache:
        encode(model, pictures)
        assert cache.counts == {"features_read": 5, "features_computed": 0}
        encode(model, pictures + 1e-6)
        assert cache.counts == {"features_read": 5, "features_computed": 5}
        with torch.autocast("cpu", torch.bfloat16):
            encode(model, pictures)
        assert cache.counts == {"features_read": 5, "features_computed": 10}
    assert "forward" not in vars(model.model.vision_tower)
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).view(-1)[0] += 1e-3
    with opened(tmp_path, model) as cache:
        encode(model, pictures)
    assert cache.counts == {"features_read": 0, "features_computed": 5}


def test_what_depends_on_the_batch_is_kept_for_such_batches_alone(model, monkeypatch, tmp_path, caplog):
    pictures, original = pictures_for(model), Blip2VisionModel.forward
    shifts = {
        "number": lambda given: torch.full((len(given), 1, 1), len(given) * 1e-3),
        "place": lambda given: torch.arange(len(given)).reshape(-1, 1, 1) * 1e-3,
    }
    for what, shift in shifts.items():

        def forward(self, pixel_values, shift=shift, **kwargs):
            output = original(self, pixel_values, **kwargs)
            output.last_hidden_state = output.last_hidden_state + shift(pixel_values)
            return output

        monkeypatch.setattr(Blip2VisionModel, "forward", forward)
        expected = {count: encode(model, pictures[:count]) for count in (2, 3)}
        backward = encode(model, pictures[:3].flip(0))
        with opened(tmp_path / what, model) as cache:
            for _ in range(2):
                for count in (2, 3):
                    assert torch.equal(encode(model, pictures[:count]), expected[count])
            assert torch.equal(encode(model, pictures[:3].flip(0)), backward)
        kept = {"number": (8, 5), "place": (0, 13)}[what]
        assert cache.counts == dict(zip(("features_read", "features_computed"), kept))
        assert ("a picture's place changes what its encoder gives" in caplog.text) is (what == "place")


def test_two_writers_and_a_kill(model, tmp_path):
    """Three processes write the same files at once; one of them is killed between writing and renaming."""
    pictures, cache = pictures_for(model), opened(tmp_path, model)
    expected = encode(model, pictures)
    with cache:
        encode(model, pictures + 1)  # what is left to write are the five pictures
    come, arrived = os.pipe()
    go, start = os.pipe()
    pids = []
    for number in range(3):
        if (pid := os.fork()) == 0:
            os.close(start)
            moves = iter(range(100))

            def replace(*args, number=number, moves=moves, original=os.replace):
                if (move := next(moves)) == 0:
                    os.write(arrived, b"x")
                    os.read(go, 1)  # until all have found no file
                elif move == 2 and number == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                original(*args)

            os.replace = replace
            with cache:
                is_right = torch.equal(encode(model, pictures), expected)
            os._exit(0 if is_right and next(moves) == 5 else 1)
        pids.append(pid)
    for _ in pids:
        os.read(come, 1)
    os.close(start)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [-signal.SIGKILL, 0, 0]
    for pipe in (come, arrived, go):
        os.close(pipe)
    (left,) = (tmp_path / PARTS).iterdir()
    opened(tmp_path, model)
    assert left.exists(), "its writer may still be at work"
    os.utime(left, times=(left.stat().st_mtime - OLD_PARTS - 1,) * 2)
    with opened(tmp_path, model) as again:
        assert torch.equal(encode(model, pictures), expected)
    assert again.counts == {"features_read": 5, "features_computed": 0}
    assert not left.exists()


def test_a_disk_without_room_is_counted(model, tmp_path, caplog):
    pictures = pictures_for(model)
    expected = encode(model, pictures)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with opened(tmp_path, model) as cache:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
            assert torch.equal(encode(model, pictures), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert cache.counts == {"features_read": 0, "features_computed": 5, "features_unwritten": 6}
    assert "cannot be written" in caplog.text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_encoder_in_parts_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "is_sharded", lambda module: True)
    with opened(tmp_path, model), pytest.raises(ValueError, match="the processes hold parts of the encoder"):
        encode(model, pictures_for(model))


@pytest.mark.parametrize(
    ("stage", "modalities", "changes", "message"),
    [
        (2, ["speech"], {"augment": ["speed"]}, "speech cannot be kept, for augment changes audio in every epoch"),
        (2, ["image"], {"augment": ["flip"]}, "image cannot be kept, for augment changes images in every epoch"),
        (1, ["speech"], {"train_encoder": True}, "keeps what a frozen encoder gives, and train_encoder trains it"),
        (0, ["image"], {}, "this stage runs no encoder"),
    ],
)
def test_refused(tiny_checkpoint, sources, tmp_path, stage, modalities, changes, message):
    augment = {name: value for name, value in changes.items() if name == "augment"}
    asked = recipe(tiny_checkpoint, sources, stage, modalities, tmp_path / "run", tmp_path / "features", **augment)
    asked |= {name: value for name, value in changes.items() if name != "augment"}
    with pytest.raises(ValueError, match=message):
        check(asked)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_kept_is_said(tiny_checkpoint, sources, tmp_path, caplog):
    modalities = ["image", "video", "speech"]
    augment = {"augment": ["speed"]}
    assert check(recipe(tiny_checkpoint, sources, 3, modalities, tmp_path / "run", tmp_path / "features", **augment))
    assert "stage 3.data.cache_features: speech cannot be kept, for augment changes audio in every" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused(tiny_checkpoint, sources, tmp_path):
    (tmp_path / "features").touch()
    with pytest.raises(ValueError, match="features is a file; name a folder"):
        check(recipe(tiny_checkpoint, sources, 2, ["image"], tmp_path / "run", tmp_path / "features"))
