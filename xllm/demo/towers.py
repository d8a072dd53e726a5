# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stand-ins for the published towers: tiny ones of the same architectures, pretrained in a minute and then frozen.

| stand-in       | for              | learns                                                        |
|----------------|------------------|---------------------------------------------------------------|
| ChatGLM        | THUDM/chatglm-6b | the text corpus, text alone                                   |
| ViT            | EVA-CLIP ViT-g   | which digit, and where, on drawings of the training scans     |
| Conformer      | a speech encoder | CTC over the spoken words, training voices                    |

Each is made in a process of its own and left as a folder that `from_pretrained` opens. A batch is drawn from the seed
alone.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BlipImageProcessor, ParakeetEncoder, ParakeetEncoderConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from xllm.demo.corpus import TextSample, build_tokenizer, collate_text, encode_sample, random_text_sample
from xllm.demo.dataset import Item
from xllm.demo.digits import draw_digit, draw_image, load_scans, random_style
from xllm.demo.questions import NUMBER_WORDS
from xllm.demo.settings import DemoScale, Optimisation, build_config, feature_extractor, speech_config, vision_config
from xllm.demo.waveforms import read_wave
from xllm.modeling_xllm.modeling_chatglm import ChatGLMForConditionalGeneration
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
from xllm.training.progress import ProgressLine, SharedLines
from xllm.training.trainers.muon import MuonBeside, muon_settings


DRAWINGS_PER_SCAN = 5  # in the middle, and as many anywhere
WORDS = (*NUMBER_WORDS["en"], *NUMBER_WORDS["zh"])
# On a description, relative to the embeddings' spread: what an interface writes is never quite a word.
_MOST_NOISE = 0.3


def train_tower(
    folder: Path,
    modules: list[Any],
    layers: nn.Module,
    plan: Optimisation,
    loss_of_batch: Callable[[], torch.Tensor],
) -> str:
    """`descend`, and save the first of `modules` in `folder`."""
    found = descend(f"tower {folder.name}", modules, layers, plan, loss_of_batch)
    modules[0].eval().save_pretrained(folder)
    return found


def descend(
    name: str, modules: list[Any], layers: nn.Module, plan: Optimisation, loss_of_batch: Callable[[], torch.Tensor]
) -> str:
    """Train all of `modules`: warm-up, a plateau, a straight line down to nearly 0.

    Matrices of `layers` are trained with Muon, everything else with AdamW: from random weights and at this size it
    needs a third of the steps. Returns the mean loss of the last tenth, for a line of progress.
    """
    module = nn.ModuleList(modules)
    parameters = list(module.parameters())
    # Biases of attention (heads x width) are tables, not maps.
    matrices = [layer.weight for layer in layers.modules() if isinstance(layer, nn.Linear)]
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    rate = plan.learning_rate
    muon = {**muon_settings(), "params": matrices, "lr": plan.muon_rate * rate, "weight_decay": 0.005}
    groups = [{"params": others}, muon]
    optimiser = MuonBeside(torch.optim.AdamW(groups, lr=rate, weight_decay=0.02, betas=(0.9, 0.98)))
    warm_up, fall = max(1.0, 0.06 * plan.steps), 0.7 * plan.steps

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * max(0.01, min(1.0, (plan.steps - step) / fall))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    losses: list[float] = []
    progress = ProgressLine(name, "step", plan.steps, SharedLines())
    for step in range(plan.steps):
        loss = loss_of_batch()
        module.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        progress.update(step + 1, f"loss {losses[-1]:.4f}")
    last = losses[int(0.9 * plan.steps) :]
    return f"loss {sum(last) / max(1, len(last)):.3f}"


def make_language_model(folder: Path, scale: DemoScale, seed: int) -> str:
    """A ChatGLM that has read text alone and answers questions about descriptions (`corpus`), with its tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(folder, seed)
    config: Any = build_config(tokenizer, scale).text_config
    return train_language_model(folder, tokenizer, config, scale.language, seed, random_text_sample)


def train_language_model(
    folder: Path,
    tokenizer: ChatGLMTokenizer,
    config: Any,
    plan: Optimisation,
    seed: int,
    draw: Callable[[np.random.Generator], TextSample],
    paired: str = "",
) -> str:
    """A ChatGLM that has read the samples which `draw` makes, saved with its tokenizer; returns a line of progress.

    `paired`: the modality of which two words of a description stand at one place, see `collate_text`.
    """
    torch.manual_seed(seed)
    model = ChatGLMForConditionalGeneration(config).train()
    batches = _text_batches(tokenizer, plan.batch_size, np.random.default_rng([seed, 8]), draw, paired)

    def loss_of_batch() -> torch.Tensor:
        batch = next(batches)
        words = model.transformer.word_embeddings
        embeddings = words(batch["input_ids"])
        if (partners := batch.pop("partners", None)) is not None:
            embeddings = embeddings + (partners >= 0)[..., None] * words(partners.clamp(min=0))
        strength = _MOST_NOISE * float(embeddings.detach().std()) * torch.rand(len(embeddings), 1, 1)
        embeddings = embeddings + batch.pop("described")[..., None] * strength * torch.randn_like(embeddings)
        return model(**batch, inputs_embeds=embeddings).loss

    tokenizer.save_pretrained(folder)
    return train_tower(folder, [model], model.transformer.layers, plan, loss_of_batch)


def _text_batches(
    tokenizer, batch_size: int, rng: np.random.Generator, draw: Callable, paired: str = "", pool: int = 8
) -> Iterator[dict]:
    """Batches of samples of similar length, so that little is padding."""
    while True:
        samples = [encode_sample(tokenizer, draw(rng)) for _ in range(pool * batch_size)]
        samples.sort(key=lambda sample: len(sample[0]))
        for start in rng.permutation(pool) * batch_size:
            yield collate_text(tokenizer, samples[start : start + batch_size], paired)


def make_image_encoder(folder: Path, scale: DemoScale, seed: int) -> str:
    """A ViT whose patches tell which digit of the training scans there is, and where."""
    pixels, digits, centres = _drawings(scale, seed)
    plan = scale.vision
    torch.manual_seed(seed)
    model = Blip2VisionModel(vision_config(scale)).train()
    _start_vision(model, scale)
    which, where = nn.Linear(scale.vision_size, 10), nn.Linear(scale.vision_size, 2)

    def loss_of_batch() -> torch.Tensor:
        chosen = torch.randint(len(pixels), (plan.batch_size,))
        batch = pixels[chosen]
        hidden = model(pixel_values=batch + 0.04 * torch.randn_like(batch)).last_hidden_state
        pooled = hidden[:, 1:].mean(1)
        loss = F.cross_entropy(which(pooled), digits[chosen], label_smoothing=0.05)
        return loss + 5.0 * F.mse_loss(where(pooled), centres[chosen])

    return train_tower(folder, [model, which, where], model.encoder, plan, loss_of_batch)


def _drawings(scale: DemoScale, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels `(N, 3, H, W)` of drawings of the training scans, their digits `(N,)` and centres `(N, 2)`."""
    scans, _ = load_scans(scale.test_fraction, seed)
    rng = np.random.default_rng([seed, 10])
    pictures, digits, centres = [], [], []
    for index in np.tile(np.arange(len(scans.labels)), DRAWINGS_PER_SCAN)[: 2 * scale.num_images]:
        height = float(rng.uniform(0.40, 0.54))
        centre = rng.uniform(height / 2, 1 - height / 2, size=2)
        pictures.append(draw_image(scans.images[index], rng))
        pictures.append(draw_digit(scans.images[index], random_style(rng), 64, height, tuple(centre), rng))
        digits += [int(scans.labels[index])] * 2
        centres += [(0.5, 0.5), tuple(centre)]
    processor = BlipImageProcessor(size={"height": scale.image_pixels, "width": scale.image_pixels})
    batches = [pictures[start : start + 500] for start in range(0, len(pictures), 500)]
    pixels = torch.cat([processor(batch, return_tensors="pt")["pixel_values"] for batch in batches])
    return pixels, torch.tensor(digits), torch.tensor(centres, dtype=torch.float32)


@torch.no_grad()
def _start_vision(model: Blip2VisionModel, scale: DemoScale) -> None:
    """Positions as sines and cosines of both axes, and filters that see the strokes, not the tone of the paper."""
    width, side = scale.vision_size, scale.image_pixels // scale.patch_pixels
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    angles = torch.cat([columns.reshape(-1, 1) * frequencies, rows.reshape(-1, 1) * frequencies], dim=1)
    model.embeddings.position_embedding[0, 1:] = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)
    weight = model.embeddings.patch_embedding.weight  # (width, 3, patch, patch)
    filters = torch.randn(width, 1, *weight.shape[2:])
    filters = filters - filters.mean(dim=(2, 3), keepdim=True)
    weight.copy_((filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).expand_as(weight))


def make_speech_encoder(folder: Path, scale: DemoScale, seed: int, data: Path, recordings: dict) -> str:
    """A Conformer whose frames spell the words of the training recordings (CTC), and nothing where nobody speaks.

    Args:
        recordings: the items of `write_speech`'s training side, files below `data`.
    """
    clips, words = _recordings(data, [*recordings["speech"], *recordings["silence"]])
    return train_speech_encoder(folder, speech_config(scale), scale.speech, seed, clips, words, len(WORDS))


def train_speech_encoder(
    folder: Path,
    config: ParakeetEncoderConfig,
    plan: Optimisation,
    seed: int,
    clips: list[torch.Tensor],
    words: list[list[int]],
    num_words: int,
) -> str:
    """A Conformer whose frames spell the words (CTC) of clips, log-mel frames `(frames, mels)`; a line of progress."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 9])
    model = ParakeetEncoder(config).train()
    _start_speech(model)
    head = nn.Linear(config.hidden_size, num_words + 1)
    by_length = np.argsort([len(clip) for clip in clips], kind="stable")
    window = min(len(clips), 4 * plan.batch_size)

    def loss_of_batch() -> torch.Tensor:
        start = int(rng.integers(len(clips) - window + 1))  # clips of similar length
        chosen = rng.choice(by_length[start : start + window], min(plan.batch_size, window), replace=False)
        features = nn.utils.rnn.pad_sequence([clips[index] for index in chosen], batch_first=True)  # (B, frames, mels)
        lengths = torch.tensor([len(clips[index]) for index in chosen])
        mask = (torch.arange(features.shape[1]) < lengths[:, None]).long()  # (B, frames)
        features = _spoken_otherwise(features)
        output = model(input_features=features + 0.1 * torch.randn_like(features), attention_mask=mask)
        log_probs = head(output.last_hidden_state).log_softmax(-1).transpose(0, 1)
        targets = torch.tensor([word for index in chosen for word in words[index]], dtype=torch.long)
        sizes = torch.tensor([len(words[index]) for index in chosen])
        frames = output.attention_mask.sum(1)
        return F.ctc_loss(log_probs, targets, frames, sizes, blank=num_words, zero_infinity=True)

    return train_tower(folder, [model, head], model.layers, plan, loss_of_batch)


def _spoken_otherwise(features: torch.Tensor) -> torch.Tensor:
    """Log-mel frames `(B, frames, mels)` as of larger and smaller speakers, and without a band of frequencies.

    The first is vocal tract length perturbation (Jaitly and Hinton, 2013), the second SpecAugment (Park et al., 2019).
    """
    clips, frames, mels = features.shape
    places = torch.arange(mels) * (0.88 + 0.24 * torch.rand(clips, 1))
    below = places.long().clamp(max=mels - 2)  # (B, mels)
    share = (places - below).clamp(max=1.0)[:, None]
    low, high = (features.gather(2, at[:, None].expand(-1, frames, -1)) for at in (below, below + 1))
    width, start = torch.randint(7, (clips, 1)), torch.randint(mels, (clips, 1))
    heard = (torch.arange(mels) < start) | (torch.arange(mels) >= start + width)
    return torch.lerp(low, high, share) * heard[:, None]


def _recordings(data: Path, items: list[Item]) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Log-mel frames `(frames, mels)` of each recording, and the numbers of its words."""
    words = [[10 * (item.facts.language == "zh") + digit for digit in item.facts.speech] for item in items]
    return mel_frames([data / item.path for item in items]), words


def mel_frames(paths: list[Path]) -> list[torch.Tensor]:
    """Log-mel frames `(frames, mels)` of recordings, as the demo's encoders read them."""
    extractor = feature_extractor()
    return [
        torch.as_tensor(extractor(read_wave(path), sampling_rate=extractor.sampling_rate)["input_features"][0])
        for path in paths
    ]


@torch.no_grad()
def _start_speech(model: ParakeetEncoder) -> None:
    """Larger weights than transformers' 0.02, with which hardly anything passes the subsampling."""
    for layer in model.subsampling.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.kaiming_normal_(model.subsampling.linear.weight)
    model.subsampling.linear.weight.mul_(0.1)
    for layer in model.layers.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Conv1d):
            layer.reset_parameters()
