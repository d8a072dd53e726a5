# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a model hears in real clips that it was not trained on, beside chance and a linear probe of the same encoder.

    python benchmarks/sound.py FOLDER [--group NAME] [--fold 1] [--seed 0] [--converter linear] [--records r.jsonl]

FOLDER holds manifest.jsonl: a line per clip with the columns file, label and fold (ESC-10's, say; of several `group`s,
`--group` names one). Each fold is left out once, or those given; `--records` keeps every answer in a file, and the
table is of all that are in it, so that folds and seeds may be run one by one.

No published weights are used: the encoder is an AST with random weights (a fixed non-linear filter bank), the language
model a small Llama trained here on text alone; both are frozen while the sound interface learns by stage 2. Asked are
"what do you hear" of a clip, and "which came first" of the louder halves of two, one behind the other. The probe is a
logistic regression on the mean of the same encoder's vectors of the same sounds; for the second question it is told
which vectors are those of the first half.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from xllm import freeze_for_stage
from xllm.assembly.composing import Towers, compose
from xllm.assembly.opening import load_checkpoint
from xllm.processing.audio_decoding import Waveform, load_audio
from xllm.processing.media_kinds import SOUND
from xllm.training.batches.collator import XLLMDataCollator


RATE = 16_000
HEAR, FIRST = "what do you hear", "which came first"
BATCH = 16


def read_clips(folder: Path, group: str | None = None) -> list[tuple[np.ndarray, str, int]]:
    """(samples, label in one word, fold) of each clip."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "fold" in row and group in (None, row.get("group"))]
    return [(load_audio(str(folder / r["file"]), RATE), r["label"].replace(" ", "_"), r["fold"]) for r in rows]


def write_parts(folder: Path, labels: list[str], seconds: float, seed: int) -> Towers:
    """A Llama with a word for each label and an AST, both with random weights, as folders."""
    words = ["<unk>", "<pad>", "<eos>", "user", "assistant", ":", "<Sound>", "</Sound>"]
    words += [*dict.fromkeys(f"{HEAR} {FIRST}".split()), *labels]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"</?\w+>|\w+|[^\w\s]"), "removed", invert=True)
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "llm")
    set_seed(seed)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": None}
    width = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 256}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **width, **sizes, **ids)).save_pretrained(folder / "llm")
    spectrum = {"num_mel_bins": 64, "max_length": int(seconds * 100) + 12}
    # Wider than the default 0.02, with which the blocks would hardly change what goes through them.
    config = ASTConfig(hidden_size=64, intermediate_size=128, initializer_range=0.2, **sizes, **spectrum)
    ASTModel(config).save_pretrained(folder / "ast")
    ASTFeatureExtractor(**spectrum).save_pretrained(folder / "ast")
    return Towers(str(folder / "llm"), {"sound": str(folder / "ast")})


def talk(content: list[dict], answer: str | None = None) -> list[dict]:
    """A question, with its answer if there is one."""
    reply = [] if answer is None else [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return [{"role": "user", "content": content}, *reply]


def train(model, batch, steps: int, rate: float) -> None:
    """`steps` steps of what is trainable, over `batch(step)`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        model(**batch(step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def train_on_text(model, processor, labels: list[str], rng, steps: int) -> None:
    """The language model learns both questions about words in place of sounds, some of which are wrong."""
    freeze_for_stage(model, 0)
    collate = XLLMDataCollator(processor)

    def heard(label: str, count: int) -> list[str]:
        return [label if rng.random() < 0.8 else str(rng.choice(labels)) for _ in range(count)]

    def sample() -> dict:
        first, second = rng.choice(labels, 2, replace=False)
        question, sounds = (HEAR, [first, first]) if rng.random() < 0.5 else (FIRST, [first, second])
        words = [word for label in sounds for word in heard(label, rng.integers(2, 7))]
        text = f"<Sound>{' '.join(words)}</Sound>{question}"
        return {"messages": talk([{"type": "text", "text": text}], str(first))}

    train(model, lambda step: collate([sample() for _ in range(2 * BATCH)]), steps, 3e-3)


def draw(clips, rng, count: int, change: bool) -> list[tuple[np.ndarray, str, str]]:
    """(samples, question, answer): each clip `count` times, alone, and its louder half before that of one of another
    label; changed by a shift in a circle and a gain, or as it is."""

    def changed(samples: np.ndarray) -> np.ndarray:
        if not change:
            return samples
        return np.roll(samples, rng.integers(len(samples))) * np.float32(10 ** rng.uniform(-0.4, 0.4))

    def louder_half(samples: np.ndarray) -> np.ndarray:
        half = len(samples) // 2
        return max(samples[:half], samples[half:], key=np.linalg.norm)

    drawn = []
    for samples, label, _ in clips * count:
        drawn.append((changed(samples), HEAR, label))
        others = [clip for clip in clips if clip[1] != label]
        pair = samples, others[rng.integers(len(others))][0]
        drawn.append((np.concatenate([louder_half(changed(one)) for one in pair]), FIRST, label))
    return drawn


def conversation(samples: np.ndarray, question: str, answer: str | None = None) -> list[dict]:
    """A question about a decoded sound."""
    return talk([{"type": "sound", "sound": Waveform(samples, RATE)}, {"type": "text", "text": question}], answer)


@torch.no_grad()
def pooled(model, processor, drawn) -> np.ndarray:
    """Mean of the encoder's vectors over each sound, or over the half that the question is about."""
    kind, means = processor.rows["sound"].kind, []
    for at in range(0, len(drawn), 2 * BATCH):
        some = drawn[at : at + 2 * BATCH]
        waves = [Waveform(samples, RATE) for samples, _, _ in some]
        batch = kind.read(processor.reader(kind), waves, return_tensors="pt")
        hidden, mask = model.model.encode("sound", batch["sound_features"], batch["sound_features_mask"])
        share = torch.tensor([1.0 if question == HEAR else 0.5 for _, question, _ in some])
        asked = (mask & (mask.cumsum(1) <= share[:, None] * mask.sum(1, keepdim=True)))[..., None].float()
        means.append((hidden.last_hidden_state * asked).sum(1) / asked.sum(1))
    return torch.cat(means).numpy()


@torch.no_grad()
def answers(model, processor, drawn) -> list[str]:
    """What the model says."""
    batch = processor.encode_conversations([conversation(samples, question) for samples, question, _ in drawn])
    output = model.generate(**batch, max_new_tokens=2, do_sample=False)[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(output, skip_special_tokens=True)]


def teach_text(clips, work: Path, args: argparse.Namespace) -> Path:
    """A model with a sound interface that is new, whose language model knows both questions about words."""
    labels = sorted({label for _, label, _ in clips})
    seconds = max(len(samples) for samples, _, _ in clips) / RATE
    towers = write_parts(work, labels, seconds, args.seed)
    # Means of a quarter of a clip; the encoder gives ten frames a second.
    means = {"converter": "linear", "converter_config": None, "frames_per_token": max(1, int(10 * seconds) // 4)}
    set_seed(args.seed)
    with patch.dict(SOUND.row, means if args.converter == "linear" else {}):
        compose(towers, work / "model", size=(64, 2))
    model, processor = load_checkpoint(str(work / "model"))
    train_on_text(model, processor, labels, np.random.default_rng(args.seed), args.text_steps)
    model.config.towers.pop("language_model", None)  # it is another one now, and stored
    model.save_pretrained(work / "taught")
    processor.save_pretrained(work / "taught")
    return work / "taught"


def leave_out(folder: Path, clips, fold: int, args: argparse.Namespace) -> list[dict]:
    """What model and probe say of the clips of the fold, which neither was trained on."""
    set_seed(args.seed)
    model, processor = load_checkpoint(str(folder))
    rng = np.random.default_rng([args.seed, fold])
    seen, unseen = ([clip for clip in clips if (clip[2] == fold) is left_out] for left_out in (False, True))
    known, asked = draw(seen, rng, args.variants, True), draw(unseen, rng, 1, False)
    freeze_for_stage(model, 2, ["sound"])
    collate, order = XLLMDataCollator(processor), rng.permutation(len(known))
    # A batch keeps together in every epoch, so that a clip is decoded and turned into a spectrogram once.
    batches = [
        collate([{"messages": conversation(*known[i])} for i in order[at : at + BATCH]])
        for at in range(0, len(order), BATCH)
    ]
    train(model, lambda step: batches[step % len(batches)], args.steps, args.rate)
    said, records = answers(model, processor, asked), []
    given, wanted = pooled(model, processor, known), pooled(model, processor, asked)
    for question in (HEAR, FIRST):
        ours, theirs = ([i for i, (_, q, _) in enumerate(drawn) if q == question] for drawn in (asked, known))
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
        probe.fit(given[theirs], [known[i][2] for i in theirs])
        for i, guess in zip(ours, probe.predict(wanted[ours])):
            record = {"seed": args.seed, "fold": fold, "question": question, "answer": asked[i][2]}
            records.append(record | {"model": said[i], "probe": str(guess)})
    return records


def shares(records: list[dict]) -> dict[str, dict[str, float]]:
    """Question -> share of right answers of the model, of the probe, and of the commonest answer."""
    found = {}
    for question in (HEAR, FIRST):
        rows = [record for record in records if record["question"] == question]
        right = {who: float(np.mean([row[who] == row["answer"] for row in rows])) for who in ("model", "probe")}
        commonest = max(Counter(row["answer"] for row in rows).values()) / len(rows)
        found[question] = {**right, "chance": commonest, "n": len(rows)}
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group")
    parser.add_argument("--fold", type=int, action="append", help="leave out this one (repeatable); default: each")
    for name, value in (("seed", 0), ("steps", 600), ("text-steps", 800), ("variants", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--converter", choices=("linear", "qformer"), default="qformer")
    parser.add_argument("--records", type=Path, help="JSON Lines, to which every answer is added")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print a row per question."""
    args = parse(arguments)
    clips = read_clips(args.folder, args.group)
    records = []
    with tempfile.TemporaryDirectory() as work:
        taught = teach_text(clips, Path(work), args)
        for fold in args.fold or sorted({fold for _, _, fold in clips}):
            records += leave_out(taught, clips, fold, args)
    if args.records:
        with args.records.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        records = [json.loads(line) for line in args.records.read_text(encoding="utf-8").splitlines()]
    runs = {(record["seed"], record["fold"]) for record in records}
    print(f"left out (seed, fold): {', '.join(map(str, sorted(runs)))}; converter: {args.converter}")
    found = shares(records)
    for question, row in found.items():
        shown = ", ".join(f"{name} {100 * row[name]:.1f} %" for name in ("model", "probe", "chance"))
        print(f"{question}: {shown} (n = {row['n']})", flush=True)
    return found


if __name__ == "__main__":
    main()
