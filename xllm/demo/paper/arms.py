# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The paper's questions, their arms, and the runs that these are made of: recipes for `xllm train`.

A run may start from another's checkpoint, and arms of several questions may be the same run: it is trained once per
seed. Steps are of 32 samples, of 64 in stage 1 of the pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xllm.demo.paper.world import TESTS


@dataclass(frozen=True)
class Steps:
    """How long the stages are."""

    image_convert: int = 60
    speech_convert: int = 120
    image_align: int = 25
    pairs: int = 25  # per fifth of the pictures
    speech_align: int = 80
    instruct: int = 25
    integrate: int = 40
    integrate_longer: int = 160
    batch_size: int = 32


@dataclass(frozen=True)
class Run:
    """Stages from the checkpoint of another run, or from the world's."""

    name: str
    stages: tuple[dict[str, Any], ...]
    start: "Run | None" = None

    @property
    def checkpoint(self) -> str:
        """The folder of its last stage."""
        return "-".join([f"stage{self.stages[-1]['stage']}", *self.stages[-1]["modalities"]])


@dataclass(frozen=True)
class Question:
    """One of the paper's questions.

    Args:
        title, paper (`str`): what is asked, and what the paper says.
        here (`str`): how it is asked here.
        arms: name -> the runs whose evaluations it has, and what it is; the others are compared with the first.
        evaluations: what is compared.
        claims: (arm, evaluation) -> by the paper, that arm's figure is higher (1) or lower (-1) than the first's.
    """

    title: str
    paper: str
    here: str
    arms: Mapping[str, tuple[tuple[str, ...], str]]
    evaluations: tuple[str, ...]
    claims: Mapping[tuple[str, str], int] = field(default_factory=dict)


def evaluation(data: Path, test: str, name: str | None = None) -> dict[str, Any]:
    """One of `TESTS` behind a stage."""
    rows = [{"path": str(data / f"test_{test}.jsonl")}]
    return {"name": name or test, "task": TESTS[test][1], "data": rows, "max_new_tokens": 12, "batch_size": 50}


def _stage(data: Path, number: int, modalities: list[str], files: Any, steps: int, batch: int, **more: Any) -> dict:
    shares = files if isinstance(files, dict) else {files: 1.0}
    evaluate = [evaluation(data, *([test] if isinstance(test, str) else test)) for test in more.pop("evaluate", ())]
    return {
        "stage": number,
        "modalities": modalities,
        "data": {
            "train": [{"path": str(data / f"{name}.jsonl"), "weight": share} for name, share in shares.items()],
            "cache_media": True,
            **({} if number == 1 else {"packing": True}),
        },
        "trainer": {
            "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": 1e-3, "adam_beta2": 0.98,
            "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "weight_decay": 0.01, "use_cpu": True,
            "logging_steps": max(1, steps // 10),
        },
        "optim": [{"match": "*", "muon": True, "lr": 0.02}],
        "report_samples": 0,
        "evaluate": evaluate,
        **more,
    }  # fmt: skip


def runs_of(data: Path, steps: Steps) -> list[Run]:
    """All runs."""
    batch, image, speech, both = steps.batch_size, ["image"], ["speech"], ["image", "speech"]
    heads = {"objective": {"projection_size": 64, "max_text_length": 8}}
    no_ctc = {"objective": {"ctc_weight": 0.0}}  # it trains the encoder, and a head that is thrown away
    everything = ["digit", "transcript", "cross"]
    adapter = {
        "lora": {"r": 8},
        "optim": [{"match": "re:.*\\.lora_[AB]\\..*", "lr": 2e-4}, {"match": "*", "muon": True, "lr": 0.02}],
    }

    def convert(pairs: str) -> dict:
        return _stage(data, 1, image, pairs, steps.image_convert, 2 * batch, **heads)

    def hear(**more: Any) -> dict:
        more |= {**no_ctc, "evaluate": [("transcript", "recogniser")]}
        return _stage(data, 1, speech, "transcripts", steps.speech_convert, batch, **more)

    def look(number: int, files: str = "pairs_zh", evaluate: Any = ("digit", "reasoning")) -> dict:
        return _stage(data, 2, image, files, number, batch, evaluate=evaluate)

    def listen(evaluate: Any = (), **more: Any) -> dict:
        return _stage(data, 2, speech, "transcripts", steps.speech_align, batch, evaluate=evaluate, **more)

    def instruct(files: str, number: int = steps.integrate) -> dict:
        return _stage(data, 3, both, files, number, batch, evaluate=everything)

    def paired(files: str, times: int) -> tuple[dict, dict]:
        last = _stage(data, 3, image, "instruct_image", steps.instruct, batch, evaluate=["digit", "reasoning"])
        return look(times * steps.pairs, files, ()), last

    def jointly(more: int) -> dict:
        parts = {"pairs_zh": steps.image_align, "transcripts": steps.speech_align, "cross": steps.integrate}
        sizes = {name: sum(1 for _ in (data / f"{name}.jsonl").open(encoding="utf-8")) for name in parts}
        least = min(parts[name] / sizes[name] for name in parts)
        shares = {name: parts[name] / sizes[name] / least for name in parts}
        return _stage(data, 2, both, shares, sum(parts.values()) + more, batch, evaluate=everything)

    before = 2 * steps.image_convert + steps.speech_convert  # stage 1 in batches of stage 2
    english, chinese = Run("english pairs", (convert("pairs_en"),)), Run("chinese pairs", (convert("pairs_zh"),))
    encoder, frozen = Run("encoder too", (hear(train_encoder=True),)), Run("frozen", (hear(),), english)
    aligned = Run("aligned", (look(steps.image_align, evaluate=()), listen(everything)), frozen)
    return [
        english, chinese, encoder, frozen, aligned,
        Run("joint", (jointly(before),)),
        Run("random, longer", (look(steps.image_align + 2 * steps.image_convert),)),
        Run("random", (look(steps.image_align),)),
        Run("english", (look(steps.image_align),), english),
        Run("chinese", (look(steps.image_align),), chinese),
        Run("few, longer", paired("few", 5), english),
        Run("more", paired("many", 5), english),
        Run("more but poorer", paired("many_poor", 5), english),
        Run("few", paired("few", 1), english),
        Run("all but the LLM", (listen(["transcript"]),), encoder),
        Run("all", (listen(["transcript"], **adapter),), encoder),
        Run("stages 2 and 3 in one", (jointly(0),), frozen),
        Run("cross", (instruct("cross"),), aligned),
        Run("few of both", (instruct("cross_few"),), aligned),
        Run("one medium", (instruct("single"),), aligned),
        Run("cross, longer", (instruct("cross", steps.integrate_longer),), aligned),
        Run("one medium, longer", (instruct("single", steps.integrate_longer),), aligned),
    ]  # fmt: skip


QUESTIONS: dict[str, Question] = {
    "English captions": Question(
        "Does a Q-Former that was aligned on English captions help a Chinese language model?",
        "Of two models of 4 million pairs, the one that starts from BLIP-2's Q-Former has 81.9 % of GPT-4's "
        "scores, the one that does not 73.8 %.",
        "Stage 2 on Chinese captions, few steps of it, before a language model that never read English: from a "
        "Q-Former whose stage 1 was on English captions, on Chinese ones, or that has none.",
        {
            "english": (("english",), "stage 1 on English captions, then stage 2"),
            "random": (("random",), "stage 2 alone"),
            "random, longer": (("random, longer",), "stage 2 alone, of as many samples as both stages of the others"),
            "chinese": (("chinese",), "stage 1 on Chinese captions, then stage 2"),
        },
        ("digit", "reasoning"),
        {("random", "digit"): -1, ("random", "reasoning"): -1},
    ),
    "more but poorer": Question(
        "What do more, but poorer, pictures with captions do?",
        "With 14 instead of 4 million pairs, conversation rises from 74.8 to 85.4 % of GPT-4's scores, and complex "
        "reasoning falls from 86.5 to 84.6 %.",
        "A fifth of the pairs with right captions; these and four times as many of which 30 in 100 have another "
        "picture's caption and 30 words that say nothing of it; the same pictures with right captions; the fifth as "
        "often as all. Then the same 150 instructions (stage 3).",
        {
            "few": (("few",), "400 pairs"),
            "more but poorer": (("more but poorer",), "2,000 pairs, of which 1,600 are poor; 5 times the steps"),
            "more": (("more",), "2,000 pairs; 5 times the steps"),
            "few, longer": (("few, longer",), "400 pairs; 5 times the steps"),
        },
        ("digit", "reasoning"),
        {("more but poorer", "digit"): 1, ("more but poorer", "reasoning"): -1},
    ),
    "three stages": Question(
        "Three stages, or everything at once?",
        "It trains in three stages, and has no figures of another way.",
        "The three stages; stage 1 and then all captions, transcripts and instructions at once, converters and "
        "adapters trained (stages 2 and 3 in one); the same from random weights, of as many samples.",
        {
            "three stages": (("cross",), "stages 1, 2 and 3"),
            "stages 2 and 3 in one": (("stages 2 and 3 in one",), "stage 1, then all data at once"),
            "joint": (("joint",), "all data at once, of as many samples as all stages have"),
        },
        ("digit", "transcript", "cross"),
    ),
    "all parts": Question(
        "Speech: everything trained, or the frozen recipe?",
        "Frozen, it recognises speech well, and can trail a CIF recogniser all of whose parts were trained together.",
        "Stages 1 and 2 of the speech interface; the same with the encoder trained in stage 1; that with the language "
        "model trained too (LoRA) in stage 2. `recogniser` is stage 1 by its own heads, without the language model.",
        {
            "frozen": (("frozen", "aligned"), "encoder and language model frozen"),
            "all but the LLM": (("encoder too", "all but the LLM"), "the encoder is trained in stage 1"),
            "all": (("encoder too", "all"), "and the language model, by LoRA, in stage 2"),
        },
        ("recogniser", "transcript"),
        {("all but the LLM", "recogniser"): -1, ("all", "transcript"): -1},
    ),
    "instructions": Question(
        "Does a small set of instructions help integration?",
        "Stage 3 on a small set of instructions gives abilities over several media at once.",
        "Questions about a picture and a recording together, of pairs of digits that no training file has, after "
        "stages 1 and 2; then after a short stage 3 on 1,600 instructions without any such, with 40, with 800 of "
        "these.",
        {
            "none": (("aligned",), "stages 1 and 2 alone"),
            "one medium": (("one medium",), "stage 3 on questions about one medium each"),
            "few of both": (("few of both",), "40 of 1,600 are about both"),
            "half of both": (("cross",), "800 of 1,600 are about both"),
            "one medium, longer": (("one medium, longer",), "questions about one medium each, 4 times the steps"),
            "half of both, longer": (("cross, longer",), "800 are about both, 4 times the steps"),
        },
        ("cross", "digit", "transcript"),
        {("few of both", "cross"): 1, ("half of both", "cross"): 1, ("half of both, longer", "cross"): 1},
    ),
}  # fmt: skip
