# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stand-ins for the published towers: tiny ones of the same architectures, pretrained in a minute and then frozen.

| stand-in       | for              | learns                                                        |
|----------------|------------------|---------------------------------------------------------------|
| ChatGLM        | THUDM/chatglm-6b | the text corpus, text alone                                   |
| ViT            | EVA-CLIP ViT-g   | which digit, and where, on drawings of the training scans     |
| Conformer      | a speech encoder | CTC over the spoken words, training voices                    |

The layers' matrices are trained with Muon, everything else with AdamW: from random weights and at this size it needs a
third of the steps. A batch is drawn from the seed alone.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ParakeetEncoder
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from xllm.demo.corpus import collate_text, random_text_sample
from xllm.demo.settings import Optimisation
from xllm.modeling_xllm.modeling_chatglm import ChatGLMForConditionalGeneration


Report = Callable[[int, int, float], None]
_MUON_RATE = 20.0  # Muon's updates have unit spectral norm; its rate relative to AdamW's, found on the language model


class TowerOptimiser:
    """Muon and AdamW side by side, with one schedule: warm-up, a plateau, a straight line down to nearly 0.

    Args:
        module (`torch.nn.Module`): all its parameters are trained.
        layers (`torch.nn.Module`): the part whose matrices are trained with Muon.
        plan (`Optimisation`): steps and peak learning rate of AdamW.
        muon_rate (`float`): Muon's rate relative to that.
    """

    def __init__(self, module: nn.Module, layers: nn.Module, plan: Optimisation, muon_rate: float = _MUON_RATE):
        self.parameters = list(module.parameters())
        # Biases of attention (heads x width) are tables, not maps.
        matrices = [layer.weight for layer in layers.modules() if isinstance(layer, nn.Linear)]
        chosen = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        rate = plan.learning_rate
        self.optimisers = [
            torch.optim.Muon(matrices, lr=muon_rate * rate, weight_decay=0.005, momentum=0.95),
            torch.optim.AdamW(others, lr=rate, weight_decay=0.02, betas=(0.9, 0.98)),
        ]
        warm_up, fall = max(1.0, 0.06 * plan.steps), 0.7 * plan.steps

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warm_up) * max(0.01, min(1.0, (plan.steps - step) / fall))

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, factor) for optimiser in self.optimisers]

    def step(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 2.0)
        for optimiser, schedule in zip(self.optimisers, self.schedules):
            optimiser.step()
            schedule.step()


def pretrain_language(
    config, tokenizer, plan: Optimisation, seed: int, report: Report, noise: float = 0.3
) -> ChatGLMForConditionalGeneration:
    """A ChatGLM that answers questions about descriptions (`corpus`).

    Args:
        config (`ChatGLMConfig`), tokenizer (`ChatGLMTokenizer`).
        noise (`float`): most noise, relative to the embeddings' spread, put on a description: what an interface will
            write is never quite a word.
    """
    torch.manual_seed(seed)
    model = ChatGLMForConditionalGeneration(config).train()
    optimiser = TowerOptimiser(model, model.transformer.layers, plan)
    batches = _text_batches(tokenizer, plan.batch_size, np.random.default_rng([seed, 8]))
    for step in range(plan.steps):
        batch = next(batches)
        embeddings = model.transformer.word_embeddings(batch["input_ids"])
        strength = noise * float(embeddings.detach().std()) * torch.rand(len(embeddings), 1, 1)
        embeddings = embeddings + batch.pop("described")[..., None] * strength * torch.randn_like(embeddings)
        loss = model(**batch, inputs_embeds=embeddings).loss
        optimiser.step(loss)
        report(step + 1, plan.steps, loss.item())
    return model.eval()


def _text_batches(tokenizer, batch_size: int, rng: np.random.Generator, pool: int = 8) -> Iterator[dict]:
    """Batches of samples of similar length, so that little is padding."""
    while True:
        samples = [random_text_sample(rng) for _ in range(pool * batch_size)]
        samples.sort(key=lambda sample: sum(len(text) for _, text in sample.media) + len(sample.question))
        for start in rng.permutation(pool) * batch_size:
            yield collate_text(tokenizer, samples[start : start + batch_size])


def pretrain_vision(
    config,
    pixels: torch.Tensor,
    digits: torch.Tensor,
    centres: torch.Tensor,
    plan: Optimisation,
    seed: int,
    report: Report,
) -> Blip2VisionModel:
    """A ViT whose patches tell which digit there is and where.

    Args:
        config (`Blip2VisionConfig`).
        pixels (`torch.FloatTensor` of shape `(N, 3, H, W)`): as the image processor gives them.
        digits (`torch.LongTensor` of shape `(N,)`), centres (`torch.FloatTensor` of shape `(N, 2)`): what is where.
    """
    torch.manual_seed(seed)
    model = Blip2VisionModel(config).train()
    _start_vision(model)
    heads = nn.ModuleDict({"digit": nn.Linear(config.hidden_size, 10), "centre": nn.Linear(config.hidden_size, 2)})
    optimiser = TowerOptimiser(nn.ModuleList([model, heads]), model.encoder, plan, muon_rate=10.0)
    for step in range(plan.steps):
        chosen = torch.randint(len(pixels), (plan.batch_size,))
        batch = pixels[chosen]
        hidden = model(pixel_values=batch + 0.04 * torch.randn_like(batch)).last_hidden_state
        pooled = hidden[:, 1:].mean(1)
        loss = F.cross_entropy(heads["digit"](pooled), digits[chosen], label_smoothing=0.05)
        loss = loss + 5.0 * F.mse_loss(heads["centre"](pooled), centres[chosen])
        optimiser.step(loss)
        report(step + 1, plan.steps, loss.item())
    return model.eval()


@torch.no_grad()
def _start_vision(model: Blip2VisionModel) -> None:
    """Positions as sines and cosines of both axes, and filters that see the strokes, not the tone of the paper."""
    pixels, patch = model.config.image_size, model.config.patch_size
    assert isinstance(pixels, int)
    assert isinstance(patch, int)
    width, side = model.config.hidden_size, pixels // patch
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    angles = torch.cat([columns.reshape(-1, 1) * frequencies, rows.reshape(-1, 1) * frequencies], dim=1)
    model.embeddings.position_embedding[0, 1:] = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)
    weight = model.embeddings.patch_embedding.weight  # (width, 3, patch, patch)
    filters = torch.randn(width, 1, *weight.shape[2:])
    filters = filters - filters.mean(dim=(2, 3), keepdim=True)
    weight.copy_((filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).expand_as(weight))


def pretrain_speech(
    config,
    clips: list[torch.Tensor],
    words: list[list[int]],
    num_words: int,
    plan: Optimisation,
    seed: int,
    report: Report,
) -> ParakeetEncoder:
    """A Conformer whose frames spell the spoken words (CTC).

    Args:
        config (`ParakeetEncoderConfig`).
        clips (`list[torch.FloatTensor]`): log-mel frames `(frames, 80)` of each recording.
        words (`list[list[int]]`): number of each spoken word, 0 to `num_words - 1`.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 9])
    model = ParakeetEncoder(config).train()
    _start_speech(model)
    head = nn.Linear(config.hidden_size, num_words + 1)
    optimiser = TowerOptimiser(nn.ModuleList([model, head]), model.layers, plan)
    by_length = np.argsort([len(clip) for clip in clips], kind="stable")
    window = min(len(clips), 4 * plan.batch_size)
    for step in range(plan.steps):
        start = int(rng.integers(len(clips) - window + 1))  # clips of similar length
        chosen = rng.choice(by_length[start : start + window], min(plan.batch_size, window), replace=False)
        features, mask = pad_clips([clips[index] for index in chosen])
        output = model(input_features=features + 0.1 * torch.randn_like(features), attention_mask=mask)
        log_probs = head(output.last_hidden_state).log_softmax(-1).transpose(0, 1)
        targets = [words[index] for index in chosen]
        loss = F.ctc_loss(
            log_probs,
            torch.tensor([word for row in targets for word in row]),
            output.attention_mask.sum(1),
            torch.tensor([len(row) for row in targets]),
            blank=num_words,
            zero_infinity=True,
        )
        optimiser.step(loss)
        report(step + 1, plan.steps, loss.item())
    return model.eval()


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


def pad_clips(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips `(frames, 80)` as one batch `(N, frames, 80)`, and its mask `(N, frames)`, 1 = real."""
    features = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    lengths = torch.tensor([len(clip) for clip in clips])
    return features, (torch.arange(features.shape[1]) < lengths[:, None]).long()
