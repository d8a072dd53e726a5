# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Retrieval by a Q-Former of stage 1: which caption belongs to a picture, and which picture to a caption.

By contrast alone (the cosine of a text with the best query of a picture, of a film or a sound of any frame), without
BLIP-2's second look by its matching head. R@k of a picture is 1 if any of its captions is among the k nearest of all.
Captions that read alike belong to all pictures that have one of them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.functional import pad

from xllm.modeling_xllm.stage1.qformer_objectives import max_similarity
from xllm.processing.conversations import part_source
from xllm.processing.media_sources import describe_source
from xllm.training.batches.collator import XLLMDataCollator, pad_rows, text_ids
from xllm.training.data.dataset import ChatDataset, describe
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import Sample
from xllm.training.evaluation.answer_log import AnswerLog
from xllm.training.evaluation.intervals import interval
from xllm.training.evaluation.other_media import media_key
from xllm.training.evaluation.results import file_of, media_figures, write_results
from xllm.training.inspection.html_page import document, safe_text, table, write_page
from xllm.training.progress import ProgressLine


KS = (1, 5, 10)
DIRECTIONS = ("media_to_text", "text_to_media")


def captions_of(sample: Sample) -> list[str]:
    """The texts that belong to a sample's medium: its captions, or the last answer of its conversation.

    Raises:
        DataError: it has not one medium, or no text.
    """
    texts = sample.answers
    if sample.messages is not None:
        texts = ["".join(part["text"] for part in sample.messages[-1]["content"] if part["type"] == "text")]
    texts = [text.strip() for text in texts if text.strip()]
    if (count := sum(part["type"] != "text" for part in sample.parts())) != 1 or not texts:
        lacks = "no caption" if not texts else f"{count} media"
        raise DataError(f"{sample.where}: has {lacks}: retrieval is over rows of one medium and its captions")
    return texts


Skip = Callable[[str, DataError], None]  # gets the place of a row and what is wrong with it


@torch.no_grad()
def embed_media(
    learner: Any, data: ChatDataset, batch_size: int, skip: Callable[[int, Exception], None] | None = None
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Unit vectors `(N, Q, P)` of the media of `data`, which of them are of real frames, `(N, Q)`, and the numbers of
    these media: with `skip`, one that cannot be used is left out."""
    row = learner.config.row
    collator = XLLMDataCollator(
        data.processor, task="contrast", modality=learner.config.modality, text_tokenizer=learner.tokenizer
    )
    line, found = ProgressLine("retrieval", "medium", len(data)), []

    def embed(numbers: list[int]) -> None:
        try:
            batch = collator([data[number] for number in numbers])
            names = [name for name in (row.input_name, row.mask_name) if name is not None]
            queried = learner.query_media(**{name: batch[name].to(learner.device) for name in names if name in batch})
        except (ValueError, OSError) as error:
            if skip is None:
                raise
            for number in numbers if len(numbers) > 1 else ():  # which one it is
                embed([number])
            if len(numbers) == 1:
                skip(numbers[0], error)
            return
        found.append((learner.embed_media(queried).float().cpu(), queried.query_mask.cpu(), numbers))

    for start in range(0, len(data), batch_size):
        embed([*range(start, min(start + batch_size, len(data)))])
        line.update(min(start + batch_size, len(data)), is_last=start + batch_size >= len(data))
    if not found:
        return torch.zeros(0, 1, 1), torch.zeros(0, 1), []
    vectors, masks, numbers = zip(*found)
    longest = max(mask.shape[1] for mask in masks)  # sounds, and so batches of them, are of any length
    embeds = torch.cat([pad(some, (0, 0, 0, longest - some.shape[1])) for some in vectors])
    mask = torch.cat([pad(some, (0, longest - some.shape[1])) for some in masks])
    return embeds, mask, [number for some in numbers for number in some]


@torch.no_grad()
def embed_texts(learner: Any, texts: list[str], batch_size: int) -> torch.Tensor:
    """Unit vectors `(T, P)`; texts are cut as in training."""
    special, longest = text_ids(learner.tokenizer), learner.config.max_text_length - 2
    found = []
    for start in range(0, len(texts), batch_size):
        some = texts[start : start + batch_size]
        ids = [learner.tokenizer(text, add_special_tokens=False)["input_ids"][:longest] for text in some]
        ids = [[special.cls, *row, special.sep] for row in ids]
        mask = pad_rows([[1] * len(row) for row in ids], 0).to(learner.device)
        found.append(learner.embed_text(pad_rows(ids, special.pad).to(learner.device), mask).float().cpu())
    return torch.cat(found)


def recalls(similarities: torch.Tensor, positives: torch.Tensor) -> dict[str, Any]:
    """R@k of the rows of `similarities (N, T)` and `positives (N, T)`; of equal ones a wrong column comes first.

    Returns:
        `{"R@1", "R@5", "R@10", "R@1_interval", ..., "n"}`.
    """
    best = similarities.masked_fill(~positives, float("-inf")).amax(1, keepdim=True)
    ahead = ((similarities >= best) & ~positives).sum(1)  # wrong ones that are not behind the first right one
    found: dict[str, Any] = {}
    for k in KS:
        hits = (ahead < k).tolist()
        found[f"R@{k}"] = sum(hits) / len(hits)
        found[f"R@{k}_interval"] = interval([(hit, 1) for hit in hits])
    return {**found, "n": len(similarities)}


def run_retrieval(
    learner: Any,
    processor: Any,
    samples: list[Sample],
    batch_size: int = 16,
    skip: Skip | None = None,
    lines: list[dict] | None = None,
) -> dict:
    """R@k in both directions over a table of pictures (films) and captions; rows with the same medium are one.

    Args:
        learner (`XLLMForQFormerPreTraining`): with its `tokenizer`, see `open_stage_one`.
        skip (*optional*): a row that cannot be used goes there instead of ending it.
        lines (*optional*): gets of each medium, then of each text, what was found for it: `{"n", "where", "direction",
            "media" or "text", "right", "found": [[name, cosine], ...], "rank"}`.

    Raises:
        DataError: a row without one medium and a text, or fewer than two media. SampleError: one cannot be decoded.
    """
    rows: dict[tuple, list[int]] = {}
    for number, sample in enumerate(samples):
        try:
            captions_of(sample)
        except DataError as error:
            if skip is None:
                raise
            skip(sample.where, error)
            continue
        rows.setdefault(media_key(sample), []).append(number)

    media, groups, kept = [samples[numbers[0]] for numbers in rows.values()], [*rows.values()], list[int]()

    def skip_medium(number: int, error: Exception) -> None:  # and all rows that are about it
        reason = DataError(describe(error).removeprefix(f"{media[number].where}: "))
        for row in groups[number]:
            cast(Skip, skip)(samples[row].where, reason)

    if len(media) > 1:
        data = ChatDataset([media], processor)
        vectors, mask, kept = embed_media(learner, data, batch_size, None if skip is None else skip_medium)
    if len(kept) < 2:
        raise DataError(f"retrieval is among several media, and there is {len(kept) or len(media)}")
    own = [groups[number] for number in kept]
    captions = [[text for number in numbers for text in captions_of(samples[number])] for numbers in own]
    texts = list(dict.fromkeys(text for some in captions for text in some))
    similarities = max_similarity(vectors, embed_texts(learner, texts, batch_size), mask)  # (N, T)
    place = {text: number for number, text in enumerate(texts)}
    positives = torch.zeros(similarities.shape, dtype=torch.bool)
    for number, some in enumerate(captions):
        positives[number, [place[text] for text in some]] = True
    both = (recalls(similarities, positives), recalls(similarities.T, positives.T))
    if lines is not None:
        lines += _lines(samples, [numbers[0] for numbers in own], texts, similarities, positives)
    return {"task": "retrieval", "media": len(own), "texts": len(texts), **dict(zip(DIRECTIONS, both))}


def _lines(
    samples: list[Sample], numbers: list[int], texts: list[str], similarities: torch.Tensor, positives: torch.Tensor
) -> Iterator[dict]:
    """What was found for each medium, and each text."""
    parts = [next(part for part in samples[number].parts() if part["type"] != "text") for number in numbers]
    names = [describe_source(part_source(part)) for part in parts]
    sides = ((names, texts, similarities, positives), (texts, names, similarities.T, positives.T))
    for direction, (asked, others, cosines, right) in zip(DIRECTIONS, sides):
        best = cosines.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
        ranks = 1 + ((cosines >= best) & ~right).sum(1)
        order = cosines.argsort(1, descending=True)[:, : KS[1]]
        for row, name in enumerate(asked):
            number = numbers[row] if direction == DIRECTIONS[0] else None
            yield {
                **(
                    {"text": name}
                    if number is None
                    else {"n": number, "where": samples[number].where, "media": [name]}
                ),
                "direction": direction,
                "right": [other for other, is_right in zip(others, right[row]) if is_right],
                "found": [[others[column], round(float(cosines[row, column]), 4)] for column in order[row]],
                "rank": int(ranks[row]),
            }


def write_retrieval(
    folder: Path, name: str, found: dict, lines: list[dict], data: ChatDataset, settings: dict, run: dict, shown: int
) -> None:
    """`results.json`, `samples_NAME.jsonl`, `report.html`: a direction is an evaluation of its own."""
    AnswerLog(folder, name).finish(lines)
    skipped = sum("skipped" in line for line in lines)
    for direction in DIRECTIONS:
        row = found[direction]
        figures = {key: row[key] for key in row if key not in ("n", "R@1", "R@1_interval")}
        result = {"metric": "R@1", "value": row["R@1"], "interval": row["R@1_interval"], "n": row["n"]}
        skips = skipped if direction == DIRECTIONS[0] else 0
        write_results(folder, f"{name}-{direction}", {**result, "skipped": skips, "figures": figures}, settings, run)
    title = f"{name}: R@1 " + ", ".join(f"{one.replace('_', ' ')} {found[one]['R@1']:.2%}" for one in DIRECTIONS)
    body = "".join(_body(title, found, lines, data, shown))
    write_page(file_of(folder, f"{name}-{DIRECTIONS[0]}", "report.html"), document(title, body))


def _body(title: str, found: dict, lines: list[dict], data: ChatDataset, shown: int) -> Iterator[str]:
    yield f"<h1>{safe_text(title)}</h1>"
    columns = [f"R@{k}" for k in KS]
    rows = [
        [one.replace("_", " "), found[one]["n"],
         *(f"{found[one][k]:.2%} [{found[one][f'{k}_interval'][0]:.2%}, {found[one][f'{k}_interval'][1]:.2%}]"
           for k in columns)]
        for one in DIRECTIONS
    ]  # fmt: skip
    yield table(("", "n", *columns), rows)
    for direction in DIRECTIONS:
        worst = sorted((line for line in lines if line.get("direction") == direction), key=lambda line: -line["rank"])
        yield f"<h2>{direction.replace('_', ' ')}: the {min(shown, len(worst))} that went worst</h2>"
        for line in worst[:shown]:
            yield f"<h3>{safe_text(line.get('where', line.get('text')))}</h3>"
            yield media_figures(data, line) if "n" in line else ""
            nearest = ", ".join(f"{name} ({cosine:.3f})" for name, cosine in line["found"])
            yield table(("", ""), [("right", ", ".join(line["right"])), ("rank", line["rank"]), ("nearest", nearest)])
    if left := [line for line in lines if "skipped" in line]:
        yield "<h2>Skipped</h2>"
        yield table(("row", "reason"), [(line["where"], line["skipped"]) for line in left])


__all__ = ["captions_of", "recalls", "run_retrieval", "write_retrieval"]
