# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Sounds beside speech: published encoders with their own extractors, windows, one prompt with all media, data."""

import json

import numpy as np
import pytest
import torch
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoModel,
    ClapConfig,
    ClapFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from xllm import XLLMConfig, XLLMEncoderModel, XLLMForQFormerPreTraining
from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.modeling_xllm.speech_encoders import encode_sequences, speech_input
from xllm.processing.media_kinds import SOUND
from xllm.training.data.media_rows import DataError, MediaRows
from xllm.training.data.sources import load_source
from xllm.training.recipes.recipe import SourceSpec


LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
HTSAT = {"patch_embeds_hidden_size": 4, "hidden_size": 32, "depths": [1] * 4, "num_attention_heads": [1] * 4}
TEXT = {**LAYERS, "hidden_size": 16, "vocab_size": 40}


def clap(**fields):
    return ClapConfig(audio_config={**HTSAT, **fields}, text_config=TEXT, projection_dim=8)


# Encoder, extractor, seconds of a window, and frames per second of it times 5.
ENCODERS = {
    "ast": (ASTConfig(hidden_size=16, max_length=104, num_mel_bins=26, **LAYERS),
            ASTFeatureExtractor(max_length=104, num_mel_bins=26)),
    "clap": (clap(), ClapFeatureExtractor(truncation="rand_trunc")),
    "clap with fusion": (clap(enable_fusion=True, fusion_type="aff_2d", aff_block_r=1), ClapFeatureExtractor()),
    "whisper": (WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
                              decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=80,
                              max_source_positions=50, vocab_size=60, max_target_positions=8, pad_token_id=0),
                WhisperFeatureExtractor(chunk_length=1)),
    "wav2vec2-bert": (Wav2Vec2BertConfig(hidden_size=16, vocab_size=8, **LAYERS), SeamlessM4TFeatureExtractor()),
}  # fmt: skip
# Tokens of 1.5 s. AST: 148 frames, windows of 104 frames that are 9 patches long: 9 + ceil(44 * 9 / 104) = 13, by 5.
# CLAP: 151 of the 1001 frames of ten seconds, 32 steps: 5, by 5. Whisper: 150 frames by 2, by 5. BERT: 74, by 5.
TOKENS = {"ast": 3, "clap": 1, "clap with fusion": 1, "whisper": 15, "wav2vec2-bert": 15}


def noise(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


def asked(processor, *sounds, question="what is this"):
    rows = [[{"type": "sound", "sound": sound}, {"type": "text", "text": question}] for sound in sounds]
    return processor.encode_conversations([[{"role": "user", "content": content}] for content in rows])


@pytest.mark.parametrize("family", ENCODERS)
def test_from_a_published_folder_to_an_answer(llm, tmp_path, capsys, family):
    """The tower is the published one bit by bit, with its own extractor; a sound is the same alone and in a batch."""
    config, extractor = ENCODERS[family]
    torch.manual_seed(3)
    published = AutoModel.from_config(config)
    published.save_pretrained(tmp_path / "encoder")
    extractor.save_pretrained(tmp_path / "encoder")
    command = ["init", str(tmp_path / "m"), "--language-model", str(llm), "--encoder", f"sound={tmp_path / 'encoder'}"]
    assert main(command) == 0
    model, processor = load_checkpoint(str(tmp_path / "m"))
    assert list(model.config.modalities) == ["sound"]
    reader = processor.reader("sound")
    assert type(reader) is type(extractor)
    tower = model.model.tower("sound")
    half = {"clap": "audio_model", "whis": "encoder"}.get(family[:4])
    theirs = (getattr(published, half) if half else published).eval()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in tower.state_dict().items())

    long = processor.load("sound", {"array": noise(1.5), "sampling_rate": 16_000})
    short = processor.load("sound", {"array": noise(0.4, seed=1), "sampling_rate": 16_000})
    alone, both = asked(processor, short), asked(processor, long, short)
    token = model.config.modalities["sound"].token_id
    with torch.no_grad():
        features = model.get_features("sound", both["sound_features"], both["sound_features_mask"])
        assert len(features.pooler_output[0]) == TOKENS[family]
        assert int((both["input_ids"][0] == token).sum()) >= TOKENS[family]
        torch.testing.assert_close(model(**both).logits[1, -3:], model(**alone).logits[0, -3:], atol=1e-4, rtol=0)
        other = model(**asked(processor, {"array": sine(0.4), "sampling_rate": 16_000})).logits
        assert not torch.allclose(other[0, -3:], model(**alone).logits[0, -3:], atol=1e-4)
    wav = write_wav(tmp_path / "f.wav", [noise(0.3)])
    capsys.readouterr()
    chat = ["chat", str(tmp_path / "m"), "what is", "--sound", str(wav), "--max-new-tokens", "2", "--json"]
    assert main(chat) == 0
    assert "answer" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("family", ["ast", "clap", "clap with fusion"])
def test_a_window_is_read_as_the_published_pipeline_reads_it(family):
    """The extractor's own features of each window through the tower alone; what is longer is neither cut nor drawn."""
    config, extractor = ENCODERS[family]
    torch.manual_seed(3)
    tower = XLLMEncoderModel._build_tower(getattr(config, "audio_config", config)).eval()
    rate = extractor.sampling_rate
    size = 10 * rate if family != "ast" else 103 * 160 + 400
    step = size if family != "ast" else 104 * 160
    samples = noise(1.5 * step / rate, rate=rate)
    clip = SOUND.load({"array": samples, "sampling_rate": rate}, extractor)
    batch = SOUND.read(extractor, [clip], return_tensors="pt")
    rule = speech_input(tower.config)
    with torch.no_grad():
        outputs, mask = encode_sequences(tower, batch["sound_features"], batch["sound_features_mask"])
        for number, part in enumerate((samples[:size], samples[step:])):
            own = extractor(part, sampling_rate=rate, return_tensors="pt")
            if family == "ast":
                states = tower(own["input_values"]).last_hidden_state[0, 2:].view(2, 9, -1)
            else:
                views = own["input_features"]
                states = tower(views, is_longer=torch.zeros(1, 1)).last_hidden_state[0].permute(1, 2, 0)
            frames = states.transpose(0, 1).flatten(0, 1)  # by time, then by frequency
            ours = outputs.last_hidden_state[0].view(2, -1, frames.shape[-1])[number]
            torch.testing.assert_close(ours, frames, atol=1e-5, rtol=1e-4)
    assert len(frames) == rule.steps * rule.vectors
    real = int(batch["sound_features_mask"].sum())
    assert int(mask.sum()) == rule.vectors * -(-real * rule.steps // rule.window)
    assert all(rule.num_frames(n) <= -(-n // rule.stride) for n in range(1, 5000))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny preset with sounds; not to be written to."""
    folder = tmp_path_factory.mktemp("sound") / "model"
    assert main(["init", str(folder), "--preset", "tiny", "--modality", "sound"]) == 0
    return str(folder)


def test_one_prompt_with_sound_speech_picture_and_film(tiny, tmp_path, capsys):
    f, g = write_wav(tmp_path / "f.wav", [sine(0.4)]), write_wav(tmp_path / "g.wav", [noise(0.6)])
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(tmp_path / "i.png")
    film = tmp_path / "v.mp4"
    write_video(film, grey_frames(10))
    media = ["--sound", str(f), "--speech", str(g), "--image", str(tmp_path / "i.png"), "--video", str(film)]
    assert main(["chat", tiny, "what", *media, "--max-new-tokens", "2", "--json"]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)
    model, processor = load_checkpoint(tiny)
    parts = [{"type": "sound", "path": str(f)}, {"type": "audio", "path": str(g)}]
    swapped = [{"type": "sound", "path": str(g)}, {"type": "audio", "path": str(f)}]

    def logits(content):
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": "what"}]}]
        inputs = processor.encode_conversations([messages])
        assert {"sound_features", "input_features"} <= set(inputs)
        with torch.no_grad():
            return model(**inputs).logits[0, -1]

    assert not torch.allclose(logits(parts), logits(swapped), atol=1e-4)
    text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert "<Sound><SoundHere></Sound><Speech><SpeechHere></Speech>" in text


def test_a_model_without_sounds_is_as_before(tmp_path, capsys):
    assert main(["init", str(tmp_path / "m"), "--preset", "tiny"]) == 0
    assert list(XLLMConfig.from_pretrained(tmp_path / "m").modalities) == ["image", "speech", "video"]
    assert "ound" not in (tmp_path / "m" / "config.json").read_text()
    assert "frames_per_token" not in (tmp_path / "m" / "config.json").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["chat", str(tmp_path / "m"), "what", "--sound", "f.wav"])
    assert "argument --sound: this model takes --image, --speech, --video" in capsys.readouterr().err


def test_a_file_of_both_kinds_needs_its_modality(tmp_path):
    """Without a model a .wav is speech as ever; with rows for both nothing is guessed."""
    table = tmp_path / "t.csv"
    table.write_text("file,text\na.wav,dog\n")
    write_wav(tmp_path / "a.wav", [sine(0.1)])
    both = MediaRows({"sound": "sound", "speech": "audio"})

    def part(media, **spec):
        (sample,) = load_source(SourceSpec(path=str(table), **spec), media)
        return next(part["type"] for part in sample.parts() if part["type"] != "text")

    assert part(None) == "audio"
    assert part(MediaRows({"sound": "sound"})) == "sound"
    assert part(MediaRows(both.rows, ("sound",))) == "sound"
    assert part(both, modality="sound") == "sound"
    with pytest.raises(DataError, match="cannot tell the modality of 'a.wav' by its name; set `modality`"):
        part(both)


def test_three_stages_on_a_table(tiny, tmp_path, capsys):
    for name, samples in (("tone", sine(0.4)), ("noise", noise(2.4))):
        write_wav(tmp_path / f"{name}.wav", [samples])
    (tmp_path / "t.csv").write_text("file,text\ntone.wav,tone\nnoise.wav,noise\n")
    quick = "{max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, learning_rate: 1.0e-2}"
    stages = "".join(f"  - {{stage: {stage}, modalities: [sound]}}\n" for stage in (1, 2, 3))
    (tmp_path / "r.yaml").write_text(
        f"model: {tiny}\noutput_dir: {tmp_path / 'out'}\nstages:\n{stages}"
        f"data: {{train: {tmp_path / 't.csv'}, cache_features: {tmp_path / 'kept'}}}\n"
        f"trainer: {quick}\n"
    )
    assert main(["train", str(tmp_path / "r.yaml"), "--json"]) == 0
    first, _, last = [stage["checkpoint"] for stage in json.loads(capsys.readouterr().out)["stages"]]
    heads = XLLMForQFormerPreTraining.from_pretrained(first)
    interfaces = XLLMEncoderModel.from_pretrained(first).interfaces.state_dict()
    assert all(value.equal(interfaces[key]) for key, value in heads.model.interfaces.state_dict().items())
    retrieval = ["evaluate", first, "--task", "retrieval", "--data", str(tmp_path / "t.csv"), "--batch-size", "1"]
    assert main([*retrieval, "--json"]) == 0  # sounds of different lengths, each in a batch of its own
    found = json.loads(capsys.readouterr().out)
    assert (found["media"], found["texts"]) == (2, 2)
    command = ["evaluate", last, "--task", "qa", "--data", str(tmp_path / "t.csv"), "--max-new-tokens", "2", "--json"]
    assert main(command) == 1
    assert "set `modality` of the source" in capsys.readouterr().err
    assert main([*command, "--modality", "sound"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2
