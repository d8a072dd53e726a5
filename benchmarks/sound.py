# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a model hears in real clips that it was not trained on, beside chance and a linear probe of the same encoder.

    python benchmarks/sound.py FOLDER [--group NAME] [--fold 1] [--seed 0] [--chosen c.json] [--records r.jsonl]

FOLDER holds manifest.jsonl: a line per clip with the columns file, label and fold (ESC-10's, say; of several `group`s,
`--group` names one). Each fold is left out once, or those given; `--records` keeps every answer in a file, and the
table is of all that are in it, so that folds and seeds may be run one by one.

No published weights are used: the encoder is an AST with random weights (a fixed non-linear filter bank), the language
model a small Llama trained here on text alone; both are frozen while the sound interface learns by stages 1 and 2.
Asked are "what do you hear" of a clip, and "which came first" of the louder halves of two, one behind the other. The
probe is a logistic regression on the mean of the same encoder's vectors of the same sounds; for the second question it
is told which vectors are those of the first half.

Where settings have several values (`--convert-steps 0 300`), those are taken that answer best on inner folds: each of
the folds to learn from is left out in turn, the outer fold never heard; so is the C of the probe, for each question.
`--chosen` keeps them, so that further seeds need not choose again.
"""

import argparse
import itertools
import json
import tempfile
from collections import Counter
from contextlib import ExitStack
from functools import cached_property
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
from xllm.training.stage_one import build_stage_one


RATE = 16_000
HEAR, FIRST = "what do you hear", "which came first"
BATCH = 16
SETTINGS = ("convert_steps", "steps", "dropout")  # chosen on inner folds where they have several values
PROBES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # C of the logistic regression
CONVERT_RATE = 1e-3
FIXED = "probe with C = 0.1"
ANSWER = ("model", "probe", FIXED)
ASKED_AGAIN = 4  # variants of each clip of an inner fold, for a choice that depends less on chance


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


class Split:
    """Sounds to learn from and sounds to be asked about; what the frozen encoder makes of a batch is kept."""

    def __init__(self, folder: Path, seen, unseen, seed: list[int], args: argparse.Namespace, variants: int = 0):
        self.folder, self.args, self.seed, self.kept = folder, args, seed, {}
        rng = np.random.default_rng(seed)
        self.known, self.asked = draw(seen, rng, args.variants, True), draw(unseen, rng, variants or 1, variants > 0)
        self.order = rng.permutation(len(self.known))
        self.model, self.processor = load_checkpoint(str(folder))

    def batches(self, order, **task) -> list[dict]:
        """Batches that keep together in every epoch, so that a sound is turned into a spectrogram once."""
        collate = XLLMDataCollator(self.processor, **task)
        samples = [{"messages": conversation(*self.known[i])} for i in order]
        return [collate(samples[at : at + BATCH]) for at in range(0, len(samples), BATCH)]

    @cached_property
    def chats(self) -> list[dict]:
        return self.batches(self.order)

    @cached_property
    def contrasts(self) -> list[dict]:
        return self.batches([i for i in self.order if self.known[i][1] == HEAR], task="contrast", modality="sound")

    def train(self, learner, encoders, batches, steps: int, rate: float) -> None:
        """`train`, in which the encoder reads each batch once."""

        def once(encode):
            def encoded(modality, inputs, mask=None, **kwargs):
                if id(inputs) not in self.kept:  # kept beside what is made of it, lest another gets its id
                    self.kept[id(inputs)] = inputs, encode(modality, inputs, mask, **kwargs)
                return self.kept[id(inputs)][1]

            return encoded

        with ExitStack() as patches:
            for encoder in encoders:
                patches.enter_context(patch.object(encoder, "encode", once(encoder.encode)))
            train(learner, lambda step: batches[step % len(batches)], steps, rate)

    def answers(self, convert_steps: int, steps: int, dropout: float) -> list[str]:
        """What a model with a new interface says of the sounds that are asked about, after stages 1 and 2."""
        set_seed(self.seed[0])
        model, _ = load_checkpoint(str(self.folder))
        for module in model.model.interfaces.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        if convert_steps:
            learner = build_stage_one(model, self.processor, "sound")
            freeze_for_stage(learner, 1, ["sound"])
            self.train(learner, [learner.model], self.contrasts, convert_steps, CONVERT_RATE)
        freeze_for_stage(model, 2, ["sound"])
        self.train(model, [model.model], self.chats, steps, self.args.rate)
        return answers(model, self.processor, self.asked)

    def probes(self) -> dict[str, dict[float, list[str]]]:
        """Question -> C -> answers of the probe."""
        given, wanted = (pooled(self.model, self.processor, drawn) for drawn in (self.known, self.asked))
        found = {}
        for question in (HEAR, FIRST):
            theirs, ours = (
                [i for i, (_, q, _) in enumerate(some) if q == question] for some in (self.known, self.asked)
            )
            found[question] = {}
            for C in PROBES:
                probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=3000))
                probe.fit(given[theirs], [self.known[i][2] for i in theirs])
                found[question][C] = [str(guess) for guess in probe.predict(wanted[ours])]
        return found

    def right(self, said: list[str], question: str | None = None) -> int:
        """How many answers are right, of all or of those to one question."""
        wanted = [answer for _, q, answer in self.asked if question in (None, q)]
        return sum(one == answer for one, answer in zip(said, wanted))


def choose(folder: Path, clips, fold: int, args: argparse.Namespace) -> dict:
    """Settings and probes that answer best where each of the folds to learn from is left out; of equals the first."""
    table = list(itertools.product(*(getattr(args, name) for name in SETTINGS)))
    found = dict.fromkeys(table, 0)
    probes = {question: dict.fromkeys(PROBES, 0) for question in (HEAR, FIRST)}
    seen = [clip for clip in clips if clip[2] != fold]
    folds = sorted({clip[2] for clip in seen})
    if len(folds) < 2 and len(table) > 1:
        raise ValueError(
            f"fold {fold} leaves one fold, so none to choose on: give --steps and the like one value each"
        )
    for inner in folds if len(folds) > 1 else ():
        parts = ([clip for clip in seen if (clip[2] == inner) is left_out] for left_out in (False, True))
        split = Split(folder, *parts, [args.seed, fold, inner], args, ASKED_AGAIN)
        for settings in table if len(table) > 1 else ():
            found[settings] += (right := split.right(split.answers(*settings)))
            print(f"{settings}: {right} of {len(split.asked)} right in fold {inner}, without {fold}", flush=True)
        for question, guesses in split.probes().items():
            for C, guess in guesses.items():
                probes[question][C] += split.right(guess, question)
    best = {question: max((0.1, *PROBES), key=rights.get) for question, rights in probes.items()}
    chosen = {"settings": max(table, key=found.get), "probes": best}
    print(f"for fold {fold}: {chosen}; right on inner folds: {probes}", flush=True)
    return chosen


def leave_out(folder: Path, clips, fold: int, chosen: dict, args: argparse.Namespace) -> list[dict]:
    """What model and probe say of the clips of the fold, which neither was trained on."""
    parts = ([clip for clip in clips if (clip[2] == fold) is left_out] for left_out in (False, True))
    split = Split(folder, *parts, [args.seed, fold], args)
    said, probes, records = split.answers(*chosen["settings"]), split.probes(), []
    for question in (HEAR, FIRST):
        ours = [i for i, (_, q, _) in enumerate(split.asked) if q == question]
        for place, i in enumerate(ours):
            guesses = {
                name: probes[question][C][place] for name, C in (("probe", chosen["probes"][question]), (FIXED, 0.1))
            }
            record = {"seed": args.seed, "fold": fold, "question": question, "answer": split.asked[i][2]}
            records.append(record | {"model": said[i]} | guesses)
    return records


def shares(records: list[dict]) -> dict[str, dict[str, float]]:
    """Question -> share of right answers of the model, of the probes, and of the commonest answer."""
    found = {}
    for question in (HEAR, FIRST):
        rows = [record for record in records if record["question"] == question]
        right = {who: float(np.mean([row[who] == row["answer"] for row in rows])) for who in ANSWER}
        commonest = max(Counter(row["answer"] for row in rows).values()) / len(rows)
        found[question] = {**right, "chance": commonest, "n": len(rows)}
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group")
    parser.add_argument("--fold", type=int, action="append", help="leave out this one (repeatable); default: each")
    for name, value in (("seed", 0), ("text-steps", 800), ("variants", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, kind, values in (
        ("convert-steps", int, [0, 300]), ("steps", int, [200, 600]), ("dropout", float, [0.1])
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, nargs="+", default=values, help="several: chosen on inner folds")
    parser.add_argument("--chosen", type=Path, help="JSON file of settings by fold, to which new ones are added")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--converter", choices=("linear", "qformer"), default="qformer")
    parser.add_argument("--records", type=Path, help="JSON Lines, to which every answer is added")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print a row per question."""
    args = parse(arguments)
    clips = read_clips(args.folder, args.group)
    records, chosen = [], json.loads(args.chosen.read_text()) if args.chosen and args.chosen.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        taught = teach_text(clips, Path(work), args)
        for fold in args.fold or sorted({fold for _, _, fold in clips}):
            if str(fold) not in chosen:
                chosen[str(fold)] = choose(taught, clips, fold, args)
                if args.chosen:
                    args.chosen.write_text(json.dumps(chosen))
            records += leave_out(taught, clips, fold, chosen[str(fold)], args)
    if args.records:
        with args.records.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        records = [json.loads(line) for line in args.records.read_text(encoding="utf-8").splitlines()]
    runs = {(record["seed"], record["fold"]) for record in records}
    print(f"left out (seed, fold): {', '.join(map(str, sorted(runs)))}; converter: {args.converter}")
    found = shares(records)
    for question, row in found.items():
        shown = ", ".join(f"{name} {100 * row[name]:.1f} %" for name in (*ANSWER, "chance"))
        print(f"{question}: {shown} (n = {row['n']})", flush=True)
    return found


if __name__ == "__main__":
    main()
