# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Tiny random checkpoints of the encoders that transformers has, in the layout that they are published in."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf


LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {**LAYERS, "hidden_size": 16, "image_size": 28, "patch_size": 14}
TEXT = {**LAYERS, "hidden_size": 16, "vocab_size": 40, "max_position_embeddings": 16}
STAGES = {"hidden_sizes": [4, 8, 8, 16], "depths": [1, 1, 1, 1], "image_size": 32}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (80, 4)}
WAVE = {**LAYERS, "hidden_size": 16, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
        "vocab_size": 8, **CONVOLUTIONS}  # fmt: skip
HTSAT = {"patch_embeds_hidden_size": 4, "hidden_size": 32, "depths": [1] * 4, "num_attention_heads": [1] * 4}
OWN = {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.2, 0.25, 0.3]}  # nobody's defaults
SQUARE = {"size": {"height": 28, "width": 28}, **OWN}


@dataclass(frozen=True)
class Encoder:
    """A family.

    Args:
        repository: one that is published so.
        make: the published model: its class and config.
        reader: its preprocessor.
        prefix: of the tower's tensors in the published model.
        row: the modality that reads it.
        lacks: tensors of the class that published files do not hold.
        reads: what the documentation says of its input.
    """

    repository: str
    make: Any
    reader: Any
    prefix: str = ""
    row: str = "image"
    lacks: tuple[str, ...] = ()
    reads: str = "pictures of one size"

    def write(self, folder: Any) -> torch.nn.Module:
        """The published folder; returns its model."""
        torch.manual_seed(3)
        model = self.make().eval()
        state = {key: value for key, value in model.state_dict().items() if not key.endswith(self.lacks or ("\0",))}
        model.save_pretrained(folder, state_dict=state)
        self.reader().save_pretrained(folder)
        return model


def _blip2():
    qformer = {**LAYERS, "hidden_size": 16, "encoder_hidden_size": 16, "vocab_size": 20}
    text = {**TEXT, "model_type": "opt", "ffn_dim": 16, "word_embed_proj_dim": 16}
    config = hf.Blip2Config(vision_config={**VIT, "initializer_range": 0.02}, qformer_config=qformer, text_config=text)
    return hf.Blip2ForConditionalGeneration(config)


def _whisper():
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=80, max_source_positions=50, vocab_size=60,
            max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip


def _parakeet():
    encoder = {"hidden_size": 16, "subsampling_conv_channels": 4, "layerdrop": 0.0, **LAYERS}
    return hf.ParakeetForCTC(hf.ParakeetCTCConfig(encoder_config=encoder, vocab_size=8, pad_token_id=0))


def _moonshine():
    return hf.MoonshineForConditionalGeneration(
        hf.MoonshineConfig(
            hidden_size=16, intermediate_size=32, encoder_num_hidden_layers=2, decoder_num_hidden_layers=1,
            encoder_num_attention_heads=2, decoder_num_attention_heads=2, vocab_size=8, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip


ENCODERS = {
    "SigLIP, SigLIP 2 of fixed size": Encoder(
        "google/siglip2-base-patch16-224",
        lambda: hf.SiglipModel(hf.SiglipConfig(text_config={**TEXT, "pad_token_id": 1}, vision_config=VIT)),
        lambda: hf.SiglipImageProcessor(**SQUARE), "vision_model.",
    ),
    "SigLIP 2 NaFlex": Encoder(
        "google/siglip2-base-patch16-naflex",
        lambda: hf.Siglip2Model(
            hf.Siglip2Config(
                text_config={**TEXT, "pad_token_id": 1},
                vision_config={**LAYERS, "hidden_size": 16, "num_patches": 16, "patch_size": 4},
            )
        ),
        lambda: hf.Siglip2ImageProcessor(patch_size=4, max_num_patches=12, **OWN), "vision_model.",
        reads="pictures of any shape, as patches",
    ),
    "CLIP": Encoder(
        "openai/clip-vit-large-patch14",
        lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=8)),
        lambda: hf.CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=True, **OWN
        ), "vision_model.",
    ),
    "EVA-CLIP ViT-g of BLIP-2": Encoder(
        "Salesforce/blip2-opt-2.7b", _blip2, lambda: hf.BlipImageProcessor(**SQUARE), "vision_model."
    ),
    "DINOv2": Encoder(
        "facebook/dinov2-base", lambda: hf.Dinov2Model(hf.Dinov2Config(**{**VIT, "mlp_ratio": 2})),
        lambda: hf.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, **OWN),
    ),
    "DINOv2 with registers": Encoder(
        "facebook/dinov2-with-registers-base",
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**{**VIT, "mlp_ratio": 2})),
        lambda: hf.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, **OWN),
    ),
    "DINOv3 ViT": Encoder(
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VIT, num_register_tokens=2)),
        lambda: hf.DINOv3ViTImageProcessor(**SQUARE),
    ),
    "DINOv3 ConvNeXt": Encoder(
        "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
        lambda: hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(**STAGES)),
        lambda: hf.DINOv3ViTImageProcessor(size={"height": 64, "width": 64}, **OWN),
    ),
    "ConvNeXt": Encoder(
        "facebook/convnext-base-224",
        lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**STAGES)),
        lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.5, **OWN), "convnext.",
    ),
    "ConvNeXt V2": Encoder(
        "facebook/convnextv2-base-1k-224",
        lambda: hf.ConvNextV2ForImageClassification(hf.ConvNextV2Config(**STAGES)),
        lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.5, **OWN), "convnextv2.",
    ),
    "ViT": Encoder(
        "google/vit-base-patch16-224", lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
        lambda: hf.ViTImageProcessor(**SQUARE), "vit.", lacks=("pooler.dense.weight", "pooler.dense.bias"),
    ),
    "Whisper": Encoder(
        "openai/whisper-small", _whisper, lambda: hf.WhisperFeatureExtractor(chunk_length=1), "model.encoder.",
        row="speech", reads="windows of 30 s, as many as the clip has",
    ),
    "wav2vec2, a norm per frame": Encoder(
        "facebook/wav2vec2-large-960h-lv60-self",
        lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(feat_extract_norm="layer", **WAVE)),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True), "wav2vec2.", row="speech", reads="samples",
    ),
    "wav2vec2, a norm over time": Encoder(
        "facebook/wav2vec2-base-960h", lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**WAVE)),
        lambda: hf.Wav2Vec2FeatureExtractor(), "wav2vec2.", row="speech", lacks=("masked_spec_embed",),
        reads="samples, clip by clip",
    ),
    "HuBERT": Encoder(
        "facebook/hubert-large-ls960-ft", lambda: hf.HubertForCTC(hf.HubertConfig(feat_extract_norm="layer", **WAVE)),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True), "hubert.", row="speech", reads="samples",
    ),
    "WavLM": Encoder(
        "microsoft/wavlm-large", lambda: hf.WavLMModel(hf.WavLMConfig(feat_extract_norm="layer", **WAVE)),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True), row="speech", reads="samples",
    ),
    "SEW": Encoder(
        "asapp/sew-tiny-100k", lambda: hf.SEWModel(hf.SEWConfig(feat_extract_norm="layer", squeeze_factor=2, **WAVE)),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True), row="speech", reads="samples, clip by clip",
    ),
    "wav2vec2-BERT": Encoder(
        "facebook/w2v-bert-2.0",
        lambda: hf.Wav2Vec2BertModel(
            hf.Wav2Vec2BertConfig(hidden_size=16, feature_projection_input_dim=160, vocab_size=8, **LAYERS)
        ),
        lambda: hf.SeamlessM4TFeatureExtractor(), row="speech", reads="log-mel frames",
    ),
    "Parakeet": Encoder(
        "nvidia/parakeet-ctc-1.1b", _parakeet, lambda: hf.ParakeetFeatureExtractor(), "encoder.", row="speech",
        reads="log-mel frames",
    ),
    "Moonshine": Encoder(
        "UsefulSensors/moonshine-base", _moonshine, lambda: hf.Wav2Vec2FeatureExtractor(do_normalize=False),
        "model.encoder.", row="speech", reads="samples, clip by clip",
    ),
    "AST": Encoder(
        "MIT/ast-finetuned-audioset-10-10-0.4593",
        lambda: hf.ASTForAudioClassification(
            hf.ASTConfig(hidden_size=16, max_length=104, num_mel_bins=26, **LAYERS)
        ),
        lambda: hf.ASTFeatureExtractor(max_length=104, num_mel_bins=26), "audio_spectrogram_transformer.", row="sound",
        reads="spectrograms of 1,024 frames",
    ),
    "CLAP": Encoder(
        "laion/clap-htsat-unfused",
        lambda: hf.ClapModel(hf.ClapConfig(audio_config=HTSAT, text_config=TEXT, projection_dim=8)),
        lambda: hf.ClapFeatureExtractor(truncation="rand_trunc"), "audio_model.", row="sound",
        reads="windows of ten seconds",
    ),
}  # fmt: skip


def _timm(folder):
    write_config(folder, {"model_type": "timm_wrapper", "architecture": "eva02_base_patch14_224"})


def _vision_of_qwen(folder):
    config = hf.Qwen2VLConfig(vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2})
    write_config(folder, {**config.to_dict(), "architectures": ["Qwen2VLForConditionalGeneration"]})


def _without_preprocessor(folder):
    hf.ViTModel(hf.ViTConfig(**VIT)).save_pretrained(folder)


def _mae(folder):
    hf.VideoMAEModel(hf.VideoMAEConfig(**VIT, num_frames=2)).save_pretrained(folder)
    hf.VideoMAEImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder
    )


def _other_size(folder):
    hf.ViTModel(hf.ViTConfig(**VIT)).save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def write_config(folder, values: dict) -> None:
    """A folder with a `config.json` alone."""
    Path(folder).mkdir()
    Path(folder, "config.json").write_text(json.dumps(values), encoding="utf-8")


# What writes a folder, what the error says of it, and the reason in the documentation.
REFUSED = {
    "timm models (`timm_wrapper`), EVA-02 among them": (
        _timm, "timm", "their code is in the timm library: save a tower that transformers has",
    ),
    "the encoder inside a multimodal LLM (Qwen2-VL)": (
        _vision_of_qwen, "transformers opens no qwen2_vl", "transformers opens it only with the whole model",
    ),
    "VideoMAE": (_mae, "VideoMAE", "it reads films, an image row pictures"),
    "any folder without its preprocessor": (
        _without_preprocessor, "no preprocessor_config.json, which says what a vit reads",
        "nothing says how its pictures are made",
    ),
    "a preprocessor of another size": (_other_size, "doesn't match model", "the encoder itself refuses the picture"),
}  # fmt: skip
