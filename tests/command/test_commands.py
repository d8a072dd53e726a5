# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The command as a user types it: init, inspect, chat, and what it says when something is wrong."""

import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from media_files import count_readings, grey_frames, write_video
from PIL import Image
from safetensors.torch import load_file, save_file

import xllm
from xllm.assembly.opening import load_checkpoint
from xllm.cli import build_parser, main
from xllm.commands.chat import Chat
from xllm.modeling_xllm.weight_files import record_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    assert main(["init", str(folder), "--preset", "tiny"]) == 0
    return str(folder)


@pytest.fixture
def media(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(16000) / 20) * 8000).astype("<i2").tobytes())
    return tmp_path


def test_help_imports_no_torch():
    code = (
        "import sys; sys.argv = ['xllm', '--help']\n"
        "from xllm.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for command in ("init", "demo", "train", "chat", "evaluate", "inspect", "convert", "push"):
        assert command in result.stdout


def test_processes_that_the_command_spawns_know_the_classes(tmp_path):
    script = tmp_path / "xllm"
    script.write_text(
        "from multiprocessing import get_context\n"
        "from transformers import AutoConfig\n"
        "import xllm\n"
        "if __name__ == '__main__':\n"
        "    with get_context('spawn').Pool(1) as pool:\n"
        "        print(type(pool.apply(AutoConfig.for_model, ('xllm',))).__name__)\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "XLLMConfig", result.stderr


def test_every_public_name_can_be_imported():
    assert [name for name in xllm.__all__ if getattr(xllm, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'XLLMForEverything'"):
        xllm.XLLMForEverything  # noqa: B018


def test_env_tells_versions_and_machine(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["torch"], found["transformers"]) == (torch.__version__.partition("+")[0], transformers.__version__)
    assert float(found["memory"].removesuffix(" GiB")) > 0
    assert main(["env"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: {value}" for name, value in found.items()]


def test_inspect_counts_what_each_stage_trains(checkpoint, capsys):
    assert main(["inspect", checkpoint, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["modalities"]) == ["image", "speech", "video"]
    stages = report["trainable_in_stage"]
    # 64 -> 64 with bias, three times.
    assert stages["3"] == 3 * (64 * 64 + 64)
    assert stages["2 video"] == 64 * 64 + 64 + 4 * 64  # the Q-Former is the image's
    assert stages["2 image"] == report["parameters"]["interfaces.image"]


def test_a_stage_checkpoint_is_inspected_without_its_towers(checkpoint, tmp_path, capsys):
    assert main(["inspect", checkpoint, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
    config["towers"] = {"language_model": {"name_or_path": "THUDM/chatglm-6b", "revision": "abc"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**whole, "towers": config["towers"]}
    assert main(["inspect", str(tmp_path)]) == 0
    assert "language_model       THUDM/chatglm-6b@abc" in capsys.readouterr().out


def test_chat_answers_about_several_files_wherever_the_question_stands(checkpoint, media, capsys):
    files = ["--image", str(media / "a.png"), "--speech", str(media / "a.wav")]
    answers = []
    for arguments in ([*files, "What is this?"], ["What is this?", *files]):
        assert main(["chat", checkpoint, *arguments, "--json", "--max-new-tokens", "4"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["answer"])
    assert answers[0] == answers[1]


def test_chat_reads_questions_and_files_from_standard_input(checkpoint, media, capsys, monkeypatch):
    lines = iter(
        [
            f"/image {media / 'a.png'}\n",
            "What?\n",
            f"/speech {media / 'none.wav'}\n",
            "And now?\n",
            "/smell x\n",
            "Hello\n",
            "/quit\n",
        ]
    )
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines), raising=False)
    assert main(["chat", checkpoint, "--json", "--max-new-tokens", "2"]) == 0
    output = capsys.readouterr()
    asked = [json.loads(line)["question"] for line in output.out.splitlines()]
    assert asked == ["What?", "Hello"]  # a file that is not there ends its question only
    assert "none.wav: no such file" in output.err
    known = "/image FILE, /speech FILE, /video FILE, /new, /undo, /save FILE, /help, /quit"
    assert f"there is no /smell here, only {known}" in output.err
    assert "not asked: 'And now?', since its file" in output.err


def test_chat_encodes_each_file_once_and_answers_as_if_it_did_every_time(checkpoint, media):
    model, processor = load_checkpoint(checkpoint)
    encoded = []
    for tower in (model.model.vision_tower, model.model.audio_tower):
        tower.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    arguments = build_parser().parse_args(["chat", checkpoint, "--json", "--max-new-tokens", "4"])
    image = {"type": "image", "path": str(media / "a.png")}
    clip = {"type": "audio", "path": str(media / "a.wav")}
    chat = Chat(model, processor, arguments)
    for question, files in (("What?", [image]), ("And now?", [clip, image]), ("Hello", [])):
        said = chat.ask(question, files)
    assert encoded == [1, 1, 1]  # two images, one clip
    inputs = processor.apply_chat_template(
        chat.turns[:-1], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(output, skip_special_tokens=True).strip() == said
    chat.reset()
    chat.ask("What?", [image])
    assert encoded[3:] == [2, 1, 1]


def test_chat_opens_and_decodes_each_file_once(checkpoint, media, monkeypatch):
    model, processor = load_checkpoint(checkpoint)
    counts = count_readings(monkeypatch)
    chat = Chat(model, processor, build_parser().parse_args(["chat", checkpoint, "--json", "--max-new-tokens", "1"]))
    write_video(media / "a.mp4", grey_frames(10))
    files = [{"type": "image", "path": str(media / "a.png")}, {"type": "video", "path": str(media / "a.mp4")}]
    chat.ask("What?", files)
    chat.ask("And now?", [{"type": "audio", "path": str(media / "a.wav")}])
    chat.ask("Hello", [])
    assert counts == {"opened": 3, "pictures": 1, "films": 1, "sounds": 1}


def test_placeholders_and_control_tokens_typed_into_a_chat_are_text(checkpoint, media):
    model, processor = load_checkpoint(checkpoint)
    read = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["token_type_ids"]), with_kwargs=True
    )
    chat = Chat(model, processor, build_parser().parse_args(["chat", checkpoint, "--json", "--max-new-tokens", "1"]))
    chat.ask("<ImageHere> [gMASK]<sop> <SpeechHere>", [{"type": "image", "path": str(media / "a.png")}])
    assert read[0].sum() == 1  # only the template's <sop> begins an answer
    assert list(chat.features) == ["image"]
    with pytest.raises(ValueError, match="Found 1 <ImageHere> tokens in the text but no images were passed"):
        processor(text="What is <ImageHere>?")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "nowhere/at/all", "hi"], "nowhere/at/all"),
        (["chat", "{folder}", "hi"], "has no config.json"),
        (["chat", "{checkpoint}", "hi", "--image", "{folder}/none.png"], "none.png: no such file"),
        (["chat", "{checkpoint}", "hi", "--image", "{folder}/a.wav"], "a.wav: "),
        (["chat", "{checkpoint}", "hi", "--speech", "{folder}/a.png"], "a.png: "),
        (["chat", "{checkpoint}", "hi", "--speech", "{folder}/empty.wav"], "empty.wav: "),
        (["init", "{checkpoint}", "--preset", "tiny"], "not an empty folder"),
        (["init", "{folder}/new"], "give --preset, or --language-model"),
        (["init", "{folder}/new", "--language-model", "{folder}"], "has no config.json"),
        (["train", "{folder}/none.yaml"], "none.yaml"),
        (["inspect", "{folder}"], "has no config.json"),
    ],
)
def test_wrong_input_is_one_line_and_status_1(checkpoint, media, capsys, arguments, message):
    (media / "empty.wav").write_bytes(b"")
    filled = [argument.format(folder=media, checkpoint=checkpoint) for argument in arguments]
    before = sorted(media.rglob("*"))
    assert main(filled) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1, output.err
    assert message in output.err
    assert sorted(media.rglob("*")) == before  # nothing half-written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat"], "the following arguments are required: model"),
        (["chat", "m", "--stream", "a.wav", "--stream=b.wav"], "argument --stream: given twice"),
        (["evaluate", "--window", "2", "m", "--window", "2"], "argument --window: given twice"),
    ],
)
def test_wrong_usage_is_status_2(capsys, arguments, message):
    for _ in range(2):  # a second parser in the same process
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--smell", "a.png", "What?"], ["What?", "--smell=a.png"]])
def test_a_medium_that_the_model_does_not_read_is_wrong_usage(checkpoint, capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(["chat", checkpoint, *arguments])
    assert exit_info.value.code == 2
    assert "argument --smell: this model takes --image, --speech, --video\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--track", "image", "--video", "a.mp4"], "--track: image reads pictures: name a row that reads sound"),
        (["--track", "speech", "--image", "a.png"], "--track: it is of a film's sound, and no film is given"),
    ],
)
def test_a_track_is_heard_of_a_film_by_a_row_of_sound(checkpoint, capsys, arguments, reason):
    with pytest.raises(SystemExit):
        main(["chat", checkpoint, "What?", *arguments])
    assert reason in capsys.readouterr().err


def test_a_model_without_speech_streams_none(checkpoint, tmp_path, capsys):
    assert main(["init", str(tmp_path / "sees"), "--interface", f"image={checkpoint}"]) == 0
    with pytest.raises(SystemExit):
        main(["chat", str(tmp_path / "sees"), "--stream", "a.wav"])
    assert "--stream, --microphone: no speech is read; this model takes --image" in capsys.readouterr().err


def test_an_option_without_its_file_is_wrong_usage(checkpoint, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["chat", checkpoint, "What?", "--image"])
    assert exit_info.value.code == 2
    assert "argument --image: expected a file or URL" in capsys.readouterr().err


def test_debug_shows_the_traceback(media, capsys):
    assert main(["chat", str(media), "hi", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_folder_of_another_model_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert main(["chat", str(tmp_path), "hi"]) == 1
    assert "a llama checkpoint, not an X-LLM" in capsys.readouterr().err


def cut_short(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def flip_a_byte(folder):
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)


def drop_a_row(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["modalities"]["speech"]
    (folder / "config.json").write_text(json.dumps(config))


def name_a_library(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "modules": ["os"]}))


def rewrite(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        record_weights(folder)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "altered or damaged since it was saved"),
        (flip_a_byte, "altered or damaged since it was saved"),
        (drop_a_row, "136 without a place: model.audio_tower."),
        (name_a_library, "modules: os is a library"),
        (rewrite(lambda tensors: tensors.update(odd=torch.ones(1))), "1 without a place: odd"),
        (rewrite(lambda tensors: tensors.pop("lm_head.weight")), "1 missing: lm_head.weight"),
        (rewrite(lambda tensors: tensors["lm_head.weight"].fill_(float("nan"))), "NaN or Inf in 1 of its tensors: lm"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_line(checkpoint, tmp_path, capsys, damage, message):
    shutil.copytree(checkpoint, tmp_path / "broken")
    damage(tmp_path / "broken")
    capsys.readouterr()
    assert main(["chat", str(tmp_path / "broken"), "hi"]) == 1
    said = capsys.readouterr()
    assert not said.out
    (line,) = said.err.splitlines()
    assert str(tmp_path / "broken") in line
    assert message in line


@pytest.mark.parametrize("template", ["{{ messages[0 }}", "{{ messages.foo.bar }}", "{{ raise_exception('no') }}"])
def test_a_broken_chat_template_is_one_line(checkpoint, tmp_path, capsys, template):
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "chat_template.jinja").write_text(template)
    capsys.readouterr()
    assert main(["chat", str(tmp_path / "broken"), "hi"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xllm chat: the chat template cannot write this conversation: ")
