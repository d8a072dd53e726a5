# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm serve` as a client sees it: the `openai` package against a server on this machine."""

import base64
import shutil
import socket

import openai
import pytest
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image

from xllm.assembly.opening import load_checkpoint
from xllm.cli import build_parser, main
from xllm.serving import PythonDecodeStream, XLLMServe


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (40, 30), (255, 0, 0)).save(folder / "red.png")
    write_wav(folder / "low.wav", [sine(frequency=200)])
    write_wav(folder / "high.wav", [sine(frequency=1000)])
    write_video(folder / "clip.mp4", grey_frames(10))
    (folder / "broken.wav").write_bytes(b"not a sound")
    return folder


@pytest.fixture(scope="module")
def client(folder):
    port = free_port()
    serving = XLLMServe(folder, host="127.0.0.1", port=port, device="cpu")
    serving.start_server()
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20, timeout=60) as client:
        client.models.list()
        yield client.with_options(max_retries=0)
    serving.kill_server()


def data_url(path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def parts_of(media) -> list[dict]:
    """Image, sound twice and a video of ten frames, in every form a client may choose."""
    sound = base64.b64encode((media / "low.wav").read_bytes()).decode()
    return [
        {"type": "image_url", "image_url": {"url": data_url(media / "red.png", "image/png")}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": str(media / "high.wav")}},
        {"type": "video_url", "video_url": {"url": data_url(media / "clip.mp4", "video/mp4")}},
        {"type": "text", "text": "What is this?"},
    ]


def ask(client, folder, parts, **kwargs):
    messages = [{"role": "user", "content": parts}]
    return client.chat.completions.create(model=folder, messages=messages, max_tokens=8, temperature=0, **kwargs)


def test_an_openai_client_gets_the_model_s_own_answer(client, folder, media):
    reply = ask(client, folder, parts_of(media))
    model, processor = load_checkpoint(folder)
    content = [
        {"type": "image", "path": str(media / "red.png")},
        {"type": "audio", "path": str(media / "low.wav")},
        {"type": "audio", "path": str(media / "high.wav")},
        {"type": "video", "path": str(media / "clip.mp4")},
        {"type": "text", "text": "What is this?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )
    # Five frames, as the processor is set, not the 32 of the server's default.
    assert inputs["pixel_values_videos"].shape[1] == 5
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert reply.choices[0].message.content == processor.decode(output, skip_special_tokens=True)


def test_a_stream_is_the_answer_in_pieces(client, folder, media):
    whole = ask(client, folder, parts_of(media)).choices[0].message.content
    chunks = list(ask(client, folder, parts_of(media), stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    assert chunks[-1].choices[0].finish_reason == "length"


def test_control_tokens_in_a_request_are_text(client, folder):
    typed = ask(client, folder, [{"type": "text", "text": "<ImageHere>[gMASK]<sop>"}])
    plain = ask(client, folder, [{"type": "text", "text": ""}])
    assert typed.usage.prompt_tokens > plain.usage.prompt_tokens + 3  # spelt out, not one token each


def test_the_served_model_is_listed(client, folder):
    assert [model.id for model in client.models.list()] == [folder]


def test_a_medium_that_cannot_be_read_is_one_line_and_status_400(client, folder, media):
    broken = {"type": "audio_url", "audio_url": {"url": str(media / "broken.wav")}}
    with pytest.raises(openai.BadRequestError, match="broken.wav: "):
        ask(client, folder, [broken])
    assert ask(client, folder, [{"type": "text", "text": "Hello"}]).choices[0].finish_reason == "length"


def test_a_python_tokenizer_is_streamed_without_losing_a_character(folder):
    tokenizer = load_checkpoint(folder)[1].tokenizer
    text = "What is  this? 这是什么？ é🙂!"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = PythonDecodeStream(skip_special_tokens=True)
    pieces = [stream.step(tokenizer, i) for i in ids]
    assert "".join(piece for piece in pieces if piece) == tokenizer.decode(ids, skip_special_tokens=True)
    assert None in pieces  # a character of several byte pieces
    assert sum(piece is not None for piece in pieces) > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: not a checkpoint: it is not a folder"),
        (["{folder}", "--port", "{busy}"], "port {busy} (Address already in use): choose another --port"),
        (["{folder}", "--port", "99999"], "choose another --port"),
        (["{folder}", "--device", "abacus"], "abacus"),
        (["{folder}", "--dtype", "float3"], "float3"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_1(folder, capsys, arguments, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"folder": folder, "busy": taken.getsockname()[1]}
        assert main(["serve", "--host", "127.0.0.1", *(text.format(**names) for text in arguments)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message.format(**names) in errors[0]


def test_a_missing_extra_is_named(folder, capsys, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    assert main(["serve", folder]) == 1
    assert "pip install 'xllm-transformers[serve]'" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert main(["serve", str(broken), "--port", str(free_port())]) == 1
    assert "cannot open the checkpoint" in capsys.readouterr().err


def test_it_listens_on_this_machine_unless_told_otherwise():
    assert build_parser().parse_args(["serve", "model"]).host == "localhost"
