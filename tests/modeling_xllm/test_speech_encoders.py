# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speech encoders of other families: lengths by hand, published folders through processor, model and generation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processor_parts import word_tokenizer
from tiny import SPEECH, prompt, tiny_config, tiny_model, tiny_rows, tiny_text_config
from transformers import (
    ASTConfig,
    AutoModel,
    BertConfig,
    BertModel,
    FunAsrNanoFeatureExtractor,
    HubertConfig,
    LlamaForCausalLM,
    MoonshineConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    PretrainedConfig,
    SeamlessM4TFeatureExtractor,
    SEWConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.fun_asr_nano.configuration_fun_asr_nano import FunAsrNanoEncoderConfig

from xllm.assembly.composing import Towers, compose
from xllm.assembly.opening import load_checkpoint
from xllm.modeling_xllm.speech_encoders import (
    blank_sequence,
    encode_sequences,
    most_positions,
    output_width,
    speech_input,
)


LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (80, 4)}
WAVE = {**LAYERS, "hidden_size": 16, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, **CONVOLUTIONS}
WHISPER = WhisperConfig(
    d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
    decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=80, max_source_positions=50, vocab_size=60,
    max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip
WAVE_LAYER = Wav2Vec2Config(feat_extract_norm="layer", vocab_size=8, **WAVE)
WAVE_BERT = Wav2Vec2BertConfig(hidden_size=16, feature_projection_input_dim=160, vocab_size=8, **LAYERS)
PARAKEET = ParakeetEncoderConfig(hidden_size=16, subsampling_conv_channels=4, layerdrop=0.0, **LAYERS)
FUN_ASR = FunAsrNanoEncoderConfig(
    hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=3, num_timestamp_prediction_layers=1
)
MOONSHINE = MoonshineConfig(
    hidden_size=16, intermediate_size=32, encoder_num_hidden_layers=2, decoder_num_hidden_layers=1,
    encoder_num_attention_heads=2, decoder_num_attention_heads=2, vocab_size=8, pad_token_id=0,
)  # fmt: skip

# Encoder, its extractor, and the placeholders of a clip of 1.5 s (24,000 samples).
FAMILIES = {
    # 150 or 151 frames of 10 ms by 8; 1.5 s are two windows of a Whisper of one second, by 2.
    "parakeet": (PARAKEET, ParakeetFeatureExtractor(), 19),
    "whisper": (WHISPER, WhisperFeatureExtractor(chunk_length=1), 75),
    "wav2vec2": (WAVE_LAYER, Wav2Vec2FeatureExtractor(return_attention_mask=True), 75),  # samples by 320
    "wav2vec2 with a norm over time": (Wav2Vec2Config(vocab_size=8, **WAVE), Wav2Vec2FeatureExtractor(), 75),
    "hubert": (HubertConfig(vocab_size=8, **WAVE), Wav2Vec2FeatureExtractor(), 75),
    "wav2vec2-bert": (WAVE_BERT, SeamlessM4TFeatureExtractor(), 74),  # 148 whole frames of 25 ms, two by two
    "sew": (
        SEWConfig(vocab_size=8, squeeze_factor=2, feat_extract_norm="layer", **WAVE),
        Wav2Vec2FeatureExtractor(return_attention_mask=True),
        75,
    ),
    "moonshine": (MOONSHINE, Wav2Vec2FeatureExtractor(do_normalize=False), 63),  # samples by 384
    "fun_asr_nano": (FUN_ASR, FunAsrNanoFeatureExtractor(), 25),  # 148 frames by 6
}
RATE = 16_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


def conversation(wave: np.ndarray) -> list[dict]:
    content = [{"type": "audio", "audio": wave}, {"type": "text", "text": "what is this"}]
    return [{"role": "user", "content": content}]


def write_llm(folder) -> None:
    torch.manual_seed(2)
    LlamaForCausalLM(tiny_text_config("llama")).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def write_encoder(folder, config, extractor) -> torch.nn.Module:
    """A folder as published: weights, config and preprocessor_config.json."""
    torch.manual_seed(3)
    model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_published_folder_to_an_answer(tmp_path, family):
    config, extractor, placeholders = FAMILIES[family]
    published = write_encoder(tmp_path / "encoder", config, extractor)
    write_llm(tmp_path / "llm")
    BertModel(BertConfig(vocab_size=30, hidden_size=16, **LAYERS)).save_pretrained(tmp_path / "bert")
    towers = Towers(str(tmp_path / "llm"), {"speech": str(tmp_path / "encoder")}, {"speech": str(tmp_path / "bert")})
    compose(towers, tmp_path / "composed")
    model, processor = load_checkpoint(str(tmp_path / "composed"))
    assert type(processor.feature_extractor) is type(extractor)
    published = published.get_encoder() if config.is_encoder_decoder else published
    for name, value in published.state_dict().items():
        torch.testing.assert_close(model.model.audio_tower.state_dict()[name], value, atol=0, rtol=0)

    def inputs(*waves):
        return processor.apply_chat_template(
            [conversation(wave) for wave in waves],
            tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        )  # fmt: skip

    long, short = noise(1.5), noise(0.4, seed=1)
    alone, both = inputs(short), inputs(long, short)
    speech_id = model.config.audio_token_id
    assert int((both["input_ids"][0] == speech_id).sum()) == placeholders
    assert processor._get_num_multimodal_tokens(audio_lengths=[len(long)])["num_audio_tokens"] == [placeholders]
    assert placeholders * processor.seconds_per_frame == pytest.approx(1.5, abs=0.03)  # but for the windows' edges
    with torch.no_grad():
        torch.testing.assert_close(model(**both).logits[1, -3:], model(**alone).logits[0, -3:], atol=1e-4, rtol=0)
        output = model.generate(**both, max_new_tokens=3, do_sample=False)
    assert output.shape[1] > both["input_ids"].shape[1]


def test_gradients_reach_the_interface_and_not_the_tower():
    model = tiny_model("llama", rows=speech_rows(), audio_config=WHISPER)
    model.model.audio_tower.requires_grad_(False)
    model.train()
    ids = torch.tensor([prompt([SPEECH] * 30, 11, 12)])
    mask = (torch.arange(100) < 60).long()[None]
    model(input_ids=ids, input_features=torch.randn(1, 100, 80), input_features_mask=mask, labels=ids).loss.backward()
    assert model.model.interfaces["speech"].adapter.weight.grad.abs().sum() > 0
    assert not any(p.grad is not None for p in model.model.audio_tower.parameters())
    assert not any(module.training for module in model.model.audio_tower.modules())


def speech_rows(**changes):
    row = tiny_rows()["speech"]
    row.subsampling_factor = None
    for name, value in changes.items():
        setattr(row, name, value)
    return {"speech": row}


@pytest.mark.parametrize(
    ("config", "length", "frames", "stride"),
    [
        (PARAKEET, 17, 3, 8),  # 17 -> 9 -> 5 -> 3
        (WHISPER, 5, 3, 2),  # 5 -> 5 -> 3
        (WAVE_LAYER, 16_000, 50, 320),  # (16000 - 10) // 80 + 1 = 200; (200 - 4) // 4 + 1 = 50
        # 16,000 samples are 200, then 50 frames; of two adapter layers 50 -> 25 -> 13
        (Wav2Vec2Config(add_adapter=True, num_adapter_layers=2, **WAVE), 16_000, 13, 1280),
        # 50 -> 24, as a kernel of five is wider than its padding
        (Wav2Vec2Config(add_adapter=True, num_adapter_layers=1, adapter_kernel_size=5, **WAVE), 16_000, 24, 640),
        (MOONSHINE, 16_000, 40, 384),  # 249 -> 81 -> 40
        (FUN_ASR, 9, 9, 1),
        (Wav2Vec2BertConfig(add_adapter=True), 9, 5, 2),  # one adapter layer: 9 -> 5
    ],
)
def test_lengths_by_hand(config, length, frames, stride):
    rule = speech_input(config)
    assert rule.num_frames(length) == frames
    assert rule.num_frames(torch.tensor([length])).tolist() == [frames]
    assert rule.stride == stride
    assert rule.num_frames(rule.shortest) == 1
    assert rule.num_frames(rule.shortest - 1) <= 0
    assert all(rule.num_frames(n) <= -(-n // stride) for n in range(1, 2000))


@pytest.mark.parametrize("patch", [4, (4, 5)])
def test_windows_of_spectrograms_by_hand(patch):
    """The published sizes: AST makes 12 rows of 101 patches of ten seconds; CLAP's map is 8 by 8, four folds of it."""
    ast = {"max_length": 1024, "num_mel_bins": 128, "patch_size": 16, "time_stride": 10, "frequency_stride": 10}
    clap = {"spec_size": 256, "num_mel_bins": 64, "patch_stride": patch, "depths": [2, 2, 6, 2]}
    for kind, fields, expected in (
        ("audio-spectrogram-transformer", ast, (1024, 101, 12, 10)),
        ("clap_audio_model", clap, (1001, 32, 2, 31)),
    ):
        rule = speech_input(SimpleNamespace(model_type=kind, **fields))
        assert (rule.window, rule.steps, rule.vectors, rule.stride) == expected
        assert rule.num_frames(rule.window) == rule.steps
        assert [rule.num_frames(n) for n in (0, 1, rule.window + 1)] == [0, 1, rule.steps + 1]


@pytest.mark.parametrize("fusion", [False, True])
def test_windows_of_spectrograms_give_the_vectors_of_each_frame_together(fusion):
    """Both towers give map rows of frames, AST behind two vectors of the clip, CLAP with the width first."""
    ast = {"max_length": 36, "num_mel_bins": 26, "patch_size": 16, "time_stride": 10, "frequency_stride": 10}
    clap = {"spec_size": 256, "num_mel_bins": 128, "patch_stride": 32, "depths": [2, 2], "enable_fusion": fusion}
    windows, asked = torch.randn(1, 5, 7), []
    for kind, fields, states in (
        ("audio-spectrogram-transformer", ast, torch.tensor([[-1], [-1], [11], [21], [31], [12], [22], [32]])),
        ("clap_audio_model", clap, torch.tensor([[[11, 21, 31], [12, 22, 32]]])),
    ):

        def tower(pictures, states=states, **options):
            asked.append((pictures, options))
            return SimpleNamespace(last_hidden_state=states[None])

        read = speech_input(SimpleNamespace(model_type=kind, **fields)).read
        assert read(tower, windows).tolist() == [[[11], [12], [21], [22], [31], [32]]]
    assert torch.equal(asked[0][0], windows)
    views, options = asked[1]
    assert torch.equal(views, windows[:, None].repeat(1, 4 if fusion else 1, 1, 1))
    assert options == ({"is_longer": torch.zeros(1, 1)} if fusion else {})
    assert read(tower, windows.to("meta")).shape == (1, 6, 1)
    assert all(option.is_meta for option in asked[-1][1].values())


def test_vectors_of_a_spectrogram_are_real_with_their_frames():
    """A clip of one and a half windows and one of half a window, of 2 rows of 3 frames each."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tower = AutoModel.from_config(ASTConfig(max_length=36, num_mel_bins=26, **sizes)).eval()
    features, mask = torch.randn(2, 72, 26), torch.arange(72) < torch.tensor([[54], [18]])
    outputs, real = encode_sequences(tower, features, mask)
    read = speech_input(tower.config).read
    first, second = (read(tower, window[None])[0] for window in features[0].split(36))
    torch.testing.assert_close(outputs.last_hidden_state[0], torch.cat([first, second]), atol=1e-5, rtol=1e-4)
    assert outputs.last_hidden_state.shape == (2, 2 * 2 * 3, 16)
    assert real.tolist() == [[True] * 10 + [False] * 2, [True] * 4 + [False] * 8]  # 54 * 3 / 36 = 4.5 frames


@pytest.mark.parametrize(
    ("config", "is_alone"),
    [
        (WAVE_LAYER, False),
        (Wav2Vec2Config(**WAVE), True),  # a norm over time
        (Wav2Vec2Config(feat_extract_norm="layer", add_adapter=True, **WAVE), True),
        (SEWConfig(feat_extract_norm="layer", **WAVE), True),
        (WAVE_BERT, False),
        (Wav2Vec2BertConfig(add_adapter=True), True),
        (MOONSHINE, True),
        (PARAKEET, False),
    ],
)
def test_who_is_encoded_alone(config, is_alone):
    assert speech_input(config).one_by_one is is_alone


def test_the_longest_clip_of_an_encoder_with_a_number_of_positions():
    assert most_positions(PARAKEET) == PARAKEET.max_position_embeddings * PARAKEET.subsampling_factor
    assert most_positions(FUN_ASR) == FUN_ASR.max_position_embeddings
    assert [most_positions(config) for config in (WAVE_LAYER, tiny_text_config(), None)] == [None] * 3


def test_rules_agree_with_transformers():
    """Where a family computes lengths itself, ours are the same for every length."""
    lengths = torch.arange(400, 3000)
    for config in (
        WAVE_LAYER,
        Wav2Vec2Config(),
        WHISPER,
        WAVE_BERT,
        Wav2Vec2BertConfig(add_adapter=True, **LAYERS, hidden_size=16, output_hidden_size=16),
    ):
        with torch.device("meta"):
            model = AutoModel.from_config(config)
        model = model.get_encoder() if config.is_encoder_decoder else model
        theirs = model._get_feat_extract_output_lengths(lengths)
        assert speech_input(config).num_frames(lengths).tolist() == theirs.tolist()
    parakeet = AutoModel.from_config(PARAKEET)
    theirs = parakeet._get_subsampling_output_length(lengths)
    assert speech_input(PARAKEET).num_frames(lengths).tolist() == theirs.tolist()
    moonshine, shortest = AutoModel.from_config(MOONSHINE), speech_input(MOONSHINE).shortest
    for length in range(shortest, shortest + 800):
        assert speech_input(MOONSHINE).num_frames(length) == moonshine._get_feat_extract_output_lengths(length)


def test_long_sound_is_read_window_by_window():
    torch.manual_seed(0)
    tower = AutoModel.from_config(WHISPER).get_encoder().eval()
    features = torch.randn(2, 200, 80)  # windows of 100
    mask = (torch.arange(200) < torch.tensor([[130], [60]])).long()
    with torch.no_grad():
        outputs, frames = encode_sequences(tower, features, mask)
        first, second = (tower(part.T[None]).last_hidden_state[0] for part in features[0].split(100))
    torch.testing.assert_close(outputs.last_hidden_state[0], torch.cat([first, second]), atol=1e-5, rtol=1e-4)
    assert frames.sum(-1).tolist() == [65, 30]
    assert not outputs.last_hidden_state[1, 50:].any()  # a window without sound is not encoded
    with pytest.raises(ValueError, match="whisper reads windows of 100 frames, got 150"):
        encode_sequences(tower, features[:, :150], mask[:, :150])


def test_an_encoder_that_the_table_does_not_know():
    class Strided(torch.nn.Module):
        """Keeps every third frame."""

        config = PretrainedConfig()

        def forward(self, inputs):
            return PretrainedOutput(inputs[:, ::3])

    given = torch.tensor([[1] * 10, [1] * 4 + [0] * 6, [0] * 10])
    outputs, mask = encode_sequences(Strided(), torch.randn(3, 10, 4), given, 3)
    assert outputs.last_hidden_state.shape == (3, 4, 4)
    assert mask.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]
    assert encode_sequences(Strided(), torch.zeros(1, 10, 4, device="meta"), None, 3)[1].is_meta
    with pytest.raises(ValueError, match="gives 4 frames for an input of 10, expected 10: set subsampling_factor"):
        encode_sequences(Strided(), torch.randn(1, 10, 4), None)


@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 0]])])
def test_an_encoder_gets_one_mask_under_the_name_that_it_knows(mask):
    class Spy(torch.nn.Module):
        config = PretrainedConfig()

        def forward(self, inputs, input_features_mask=None, attention_mask=None, deep=False):
            self.given = attention_mask, input_features_mask, deep
            return PretrainedOutput(inputs)

    encode_sequences(spy := Spy(), torch.zeros(1, 3, 4), mask, deep=True)
    torch.testing.assert_close(spy.given[0], torch.ones(1, 3, dtype=torch.long) if mask is None else mask)
    assert spy.given[1:] == (None, True)


@pytest.mark.parametrize(("lost", "is_taken"), [(0, True), (2, True), (3, False)])
def test_an_unknown_encoder_may_lose_the_margin_of_a_convolution(lost, is_taken):
    class Cut(torch.nn.Module):
        config = PretrainedConfig()

        def forward(self, inputs):
            return PretrainedOutput(inputs[:, : inputs.shape[1] - lost])

    if is_taken:
        assert encode_sequences(Cut(), torch.randn(1, 9, 4), None)[1].tolist() == [[True] * (9 - lost)]
    else:
        with pytest.raises(ValueError, match="gives 6 frames for an input of 9, expected 9"):
            encode_sequences(Cut(), torch.randn(1, 9, 4), None)


@pytest.mark.parametrize(
    ("config", "name", "shape"),
    [
        (PARAKEET, "input_features", (1, 9, 80)),  # one frame of a clip of one position, and eight more
        (WHISPER, "input_features", (1, 100, 80)),  # a window
        (WAVE_LAYER, "input_values", (1, 250 + 320)),
        (WAVE_BERT, "input_features", (1, 2, 160)),
        (FUN_ASR, "input_features", (1, 2, 560)),
        (ASTConfig(max_length=104, num_mel_bins=26), "input_values", (1, 104, 26)),
    ],
)
def test_a_blank_clip_has_two_frames(config, name, shape):
    clip = blank_sequence(SimpleNamespace(config=config, main_input_name=name))
    assert clip.shape == shape
    assert not clip.any()
    if speech_input(config).window is None:
        assert speech_input(config).num_frames(shape[1]) == 2


def test_a_blank_clip_of_an_encoder_that_the_table_does_not_know():
    unknown = SimpleNamespace(config=PretrainedConfig(), main_input_name="input_values")
    assert blank_sequence(unknown).shape == (1, 4)
    assert blank_sequence(unknown, 3).shape == (1, 12)  # two frames, though it may lose two
    unknown.main_input_name = "input_features"
    with pytest.raises(ValueError, match="how wide its input is, none of input_size, num_mel_bins, feature_proj"):
        blank_sequence(unknown, 3)
    unknown.config.num_mel_bins = 7
    assert blank_sequence(unknown, 3).shape == (1, 12, 7)


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({"hidden_size": 5, "output_hidden_size": 6}, 5),
        ({"hidden_size": 5, "output_hidden_size": 6, "add_adapter": True}, 6),
        ({"hidden_sizes": [3, 4, 5]}, 5),
        ({"hidden_dim": 7}, 7),
    ],
)
def test_how_wide_the_features_of_an_encoder_are(fields, width):
    assert output_width(SimpleNamespace(**fields)) == width
    with pytest.raises(ValueError, match="how wide the features of a radar are"):
        output_width(SimpleNamespace(model_type="radar"))


class Shortened(torch.nn.Module):
    """Loses the last frame of an encoder whose rule is known."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.config = tower, tower.config

    def forward(self, inputs, attention_mask):
        return PretrainedOutput(self.tower(inputs, attention_mask=attention_mask).last_hidden_state[:, :-1])


class PretrainedOutput:
    def __init__(self, states):
        self.last_hidden_state = states


def test_wrong_input_is_named(tmp_path):
    tower = AutoModel.from_config(WAVE_LAYER).eval()
    assert encode_sequences(tower, torch.randn(1, 250), None)[1].tolist() == [[True]]  # the shortest clip
    with pytest.raises(ValueError, match="wav2vec2 gives 49 frames for an input of 16000, expected 50"):
        encode_sequences(Shortened(tower), torch.randn(1, 16_000), None)
    with pytest.raises(ValueError, match="a clip has 200 positions; wav2vec2 needs 250"):
        encode_sequences(tower, torch.randn(2, 999), (torch.arange(999) < torch.tensor([[999], [200]])).long())
    with pytest.raises(ValueError, match=r"modalities\['speech'\].subsampling_factor is 8, but whisper gives one fr"):
        tiny_config(rows=speech_rows(subsampling_factor=8), audio_config=WHISPER)
    write_llm(tmp_path / "llm")
    AutoModel.from_config(WAVE_LAYER).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="no preprocessor_config.json, which says what a wav2vec2 reads"):
        compose(Towers(str(tmp_path / "llm"), {"speech": str(tmp_path / "encoder")}), tmp_path / "composed")
    with pytest.raises(ValueError, match="encoders: no modality reads radar"):
        compose(Towers(str(tmp_path / "llm"), {"radar": str(tmp_path / "encoder")}), tmp_path / "composed")
