# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Does stage 1 of the Q-Former generalise? Retrieval, matching and captioning of pictures it has never seen.

    python benchmarks/qformer_pretraining.py [--modality image|video] [--steps 1000] [--seed 0] [--json]

Pictures are drawn here: one shape of a colour at a place, with jitter in place, size and shade, and noise. Of the 96
captions ("a red circle at the top left") 24 never occur in training. The vision tower is random and frozen, as
everything but the interface and the throw-away heads; so what is measured is learned by the queries. A video is three
frames of which one, unknown, shows the shape, and some clips are shorter.

Prints recall@1 among all 96 captions before and after, for new pictures of trained captions and for the 24
combinations of colour, shape and place that were never captioned (chance: 1 %). One thread; the seconds printed are
CPU time.
"""

import argparse
import json
import time
from itertools import product

import torch
from transformers import Blip2QFormerConfig, LlamaConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.modeling_xllm.configuration_xllm import X2LConfig
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.stage1.qformer_objectives import max_similarity


SIZE, PATCH, FRAMES = 32, 8, 3
COLOURS = {
    "red": (1.0, 0.1, 0.1),
    "green": (0.1, 0.9, 0.1),
    "blue": (0.1, 0.2, 1.0),
    "yellow": (0.9, 0.9, 0.1),
    "purple": (0.7, 0.1, 0.8),
    "white": (1.0, 1.0, 1.0),
}
SHAPES = ("circle", "ring", "bar", "cross")
PLACES = {"top left": (9, 9), "top right": (9, 23), "bottom left": (23, 9), "bottom right": (23, 23)}
SCENES = list(product(COLOURS, SHAPES, PLACES))
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[DEC]", "a", "at", "the", "top", "bottom", "left", "right", *COLOURS, *SHAPES]


def caption_ids() -> torch.LongTensor:
    """(96, L): every caption has as many words."""
    captions = [f"[CLS] a {colour} {shape} at the {place} [SEP]".split() for colour, shape, place in SCENES]
    return torch.tensor([[WORDS.index(word) for word in caption] for caption in captions])


def draw(scene: int, generator: torch.Generator) -> torch.Tensor:
    """One picture (3, SIZE, SIZE) of a scene, values around 0."""
    colour, shape, place = SCENES[scene]
    jitter = torch.rand(6, generator=generator)
    row, column = (centre + 3 * (2 * shift.item() - 1) for centre, shift in zip(PLACES[place], jitter))
    radius = 5 + 2 * jitter[2].item()
    y = (torch.arange(SIZE).float() - row)[:, None] / radius
    x = (torch.arange(SIZE).float() - column)[None, :] / radius
    inside = {
        "circle": x**2 + y**2 <= 1,
        "ring": (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.35),
        "bar": (x.abs() <= 1) & (y.abs() <= 0.3),
        "cross": ((x.abs() <= 0.3) & (y.abs() <= 1)) | ((y.abs() <= 0.3) & (x.abs() <= 1)),
    }[shape]
    shade = torch.tensor(COLOURS[colour]) * (0.75 + 0.25 * jitter[3:].mean())
    picture = torch.where(inside, shade[:, None, None], torch.tensor(0.0))
    return picture + 0.08 * torch.randn(3, SIZE, SIZE, generator=generator)


def make_media(scenes: list[int], modality: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Model inputs that show these scenes, one item each."""
    pictures = torch.stack([draw(scene, generator) for scene in scenes])
    if modality == "image":
        return {"pixel_values": pictures}
    videos = 0.08 * torch.randn(len(scenes), FRAMES, 3, SIZE, SIZE, generator=generator)
    lengths = torch.randint(1, FRAMES + 1, (len(scenes),), generator=generator)
    shown = (torch.rand(len(scenes), generator=generator) * lengths).long()
    videos[torch.arange(len(scenes)), shown] = pictures
    return {"pixel_values_videos": videos, "video_frame_mask": (torch.arange(FRAMES) < lengths[:, None]).long()}


def build(modality: str) -> XLLMForQFormerPreTraining:
    """A Q-Former of four layers over a random, frozen vision tower."""
    qformer = Blip2QFormerConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    qformer.initializer_range = qformer.hidden_size**-0.5
    row = X2LConfig(num_query_tokens=4, qformer_config=qformer)
    if modality == "video":
        row.input_name, row.mask_name, row.num_frames = "pixel_values_videos", "video_frame_mask", FRAMES
    config = QFormerPreTrainingConfig(
        text_config=LlamaConfig(hidden_size=64, num_attention_heads=4, vocab_size=64, num_hidden_layers=1),
        vision_config=Blip2VisionConfig(
            hidden_size=96,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=SIZE,
            patch_size=PATCH,
            initializer_range=0.05,
        ),
        modalities={modality: row},
        modality=modality,
        initializer_range=0.05,
        text_vocab_size=len(WORDS),
        text_pad_token_id=WORDS.index("[PAD]"),
        text_bos_token_id=WORDS.index("[DEC]"),
        text_eos_token_id=WORDS.index("[SEP]"),
        text_max_positions=16,
        max_text_length=12,
        projection_size=64,
    )
    model = XLLMForQFormerPreTraining(config)
    model.model.vision_tower.requires_grad_(False)
    return model


def recall_at_1(similarities: torch.Tensor, positives: torch.BoolTensor) -> float:
    """Share of rows whose best column is a positive."""
    return positives.gather(1, similarities.argmax(dim=1, keepdim=True)).float().mean().item()


def auc(right: torch.Tensor, wrong: torch.Tensor) -> float:
    """Share of pairs in which a right caption is scored above a wrong one."""
    return (right[:, None] > wrong[None, :]).float().mean().item()


def greedy_captions(model, media, max_length: int) -> torch.LongTensor:
    """`(B, at most max_length)`: `[DEC]`, the caption of the ITG head, `[SEP]`, padding."""
    config = model.config
    ids = torch.full((media.frame_mask.shape[0], 1), config.text_bos_token_id)
    ended = torch.zeros_like(ids, dtype=torch.bool)
    while ids.shape[1] < max_length and not ended.all():
        hidden = model.text_branch.decode(
            model.qformer, ids, torch.ones_like(ids), media.query_states, media.query_mask
        )
        token = model.text_branch.lm_logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)
        token = token.masked_fill(ended, config.text_pad_token_id)
        ended = ended | (token == config.text_eos_token_id)
        ids = torch.cat([ids, token], dim=1)
    return ids


@torch.no_grad()
def measure(model, scenes: list[int], media: dict[str, torch.Tensor]) -> dict[str, float]:
    """Retrieval against all captions, matching of right and wrong captions, next words and whole greedy captions."""
    model.eval()
    ids = caption_ids()
    queried = model.query_media(**media)
    similarities = max_similarity(model.embed_media(queried), model.embed_text(ids), queried.query_mask)
    truth = torch.tensor(scenes)
    positives = truth[:, None] == torch.arange(len(SCENES))
    shown = positives.any(dim=0)
    right = model.match(queried, ids[truth]).argmax(dim=1) == 1
    generator = torch.Generator().manual_seed(0)
    other = (truth + torch.randint(1, len(SCENES), truth.shape, generator=generator)) % len(SCENES)
    wrong = model.match(queried, ids[(truth + 1) % len(SCENES)])  # one word is another: a shape, a place or a colour
    margins = [
        (logits[:, 1] - logits[:, 0])
        for logits in (model.match(queried, ids[truth]), wrong, model.match(queried, ids[other]))
    ]
    wrong = wrong.argmax(dim=1) == 0
    logits = model.text_branch.lm_logits(model.caption_states(queried, ids[truth]))
    captions = greedy_captions(model, queried, ids.shape[1])
    width = captions.shape[1]
    model.train()
    return {
        "media_to_text_r1": recall_at_1(similarities, positives),
        "text_to_media_r1": recall_at_1(similarities[:, shown].T, positives[:, shown].T),
        "matching_accuracy": (torch.cat([right, wrong])).float().mean().item(),
        "auc_near_caption": auc(margins[0], margins[1]),
        "auc_any_caption": auc(margins[0], margins[2]),
        "token_accuracy": (logits[:, :-1].argmax(dim=-1) == ids[truth][:, 1:]).float().mean().item(),
        "exact_captions": (captions[:, 1:] == ids[truth][:, 1:width]).all(dim=1).float().mean().item(),
    }


def train(model, scenes: list[int], modality: str, steps: int, generator: torch.Generator) -> dict[str, float]:
    """AdamW with warm-up and cosine decay on a fixed set of 40 pictures per caption; the last losses."""
    repeats = scenes * 40
    media, ids = make_media(repeats, modality, generator), caption_ids()[torch.tensor(repeats)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(repeats), (32,), generator=generator)
        output = model(input_ids=ids[rows], **{name: value[rows] for name, value in media.items()})
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    return {name: output[name].item() for name in ("itc_loss", "itm_loss", "itg_loss")}


def main() -> None:
    """Train, and print the table (or JSON)."""
    parser = argparse.ArgumentParser(description="Stage 1 of the Q-Former on drawn shapes: held-out retrieval.")
    parser.add_argument("--modality", choices=["image", "video"], default="image")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    order = torch.randperm(len(SCENES), generator=generator).tolist()
    groups = {"new pictures": order[24:] * 3, "new combinations": order[:24] * 9}
    held_out = {name: (group, make_media(group, arguments.modality, generator)) for name, group in groups.items()}
    model = build(arguments.modality)
    before = {name: measure(model, *items) for name, items in held_out.items()}
    started = time.process_time()
    losses = train(model, order[24:], arguments.modality, arguments.steps, generator)
    seconds = time.process_time() - started
    after = {name: measure(model, *items) for name, items in held_out.items()}
    if arguments.json:
        print(json.dumps({"before": before, "after": after, "losses": losses, "train_cpu_seconds": seconds}, indent=2))
        return
    print(
        f"{arguments.modality}: {arguments.steps} steps of 32 pairs in {seconds:.0f} CPU seconds, last losses {losses}"
    )
    for name in groups:
        for figure, value in after[name].items():
            print(f"{name:18s} {figure:18s} {before[name][figure]:6.1%} -> {value:6.1%}")


if __name__ == "__main__":
    main()
