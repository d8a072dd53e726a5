# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Batches for all three stages, for the plain `transformers.Trainer` (paper section 3.2; the authors' packing).

| task       | model                            | batch                                                              |
|------------|----------------------------------|--------------------------------------------------------------------|
| chat       | XLLMForConditionalGeneration     | text and media of the conversations; labels on the assistant alone |
| transcribe | XLLMForSpeechRecognition         | clips, labels = ids of the transcript                              |
| contrast   | XLLMForQFormerPreTraining        | one medium per row, its text as input_ids                          |

Loss of "chat": the last answer and its end token; with ChatGLM `<sop>` too, as published (the model learns to begin).
`loss_on: all`, or `loss` of a turn, says otherwise (`answers`). Deviations: a sample that is too long loses
its oldest turns, never media, the question or the answer (the published code cuts the end of the prompt, and with it
the question); what is cut is counted (`cuts`).
"""

import copy
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from xllm.modeling_xllm.language_models import PrefixLanguageModel, language_model_of
from xllm.processing.conversations import clean_messages, media_of
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.processing.media_sources import MediaError
from xllm.training.batches.answers import answers_with_loss, earlier_answers, located
from xllm.training.data.augmentation import Augmentation
from xllm.training.trainers.distillation import TEACHER, in_words


TASKS = ("chat", "transcribe", "contrast")
IGNORE = -100
CUTS = ("turns", "texts")  # what is left out of samples: turns of "chat", the end of texts of "contrast"
DAY = datetime(2024, 7, 26)  # noqa: DTZ001  # what Llama 3.2's template writes where there is no clock
_PARTS_OF_DATES = {f"%{code}": DAY.strftime(f"%{code}") for code in "aAbBcdHIjmMpSUwWxXyY"}
# Not of every system's strftime:
_PARTS_OF_DATES |= {"%-d": str(DAY.day), "%-m": str(DAY.month), "%F": str(DAY.date())}
# In front of a chat template: its function that writes today's date writes that day's.
_ON_ONE_DAY = (
    "{%- macro strftime_now(format) -%}{%- set ns = namespace(text=format) -%}"
    f"{{%- for code, part in {_PARTS_OF_DATES!r}.items() -%}}"
    "{%- set ns.text = ns.text.replace(code, part) -%}{%- endfor -%}{{- ns.text -}}{%- endmacro -%}"
)
_TOO_LONG = "set data.max_seconds to no more than that, and data.long_audio to chunk or window"
logger = logging.get_logger(__name__)


class _Row(NamedTuple):
    """A conversation that becomes a row of "chat": its messages, the sample that it is of, where answers that carry
    loss stand in its prompt, as (first, end) characters.
    """

    messages: list[dict]
    owner: int
    earlier: tuple[tuple[int, int], ...] = ()


class TextIds(NamedTuple):
    """Ids around a stage-1 text: `cls` opens it, `dec` opens a caption to generate, `sep` ends it, `pad` fills up."""

    cls: int
    dec: int
    sep: int
    pad: int
    vocab_size: int


def text_ids(tokenizer: PreTrainedTokenizerBase) -> TextIds:
    """The ids that stage 1 of a Q-Former reads a tokenizer's text with.

    A BERT tokenizer gives `[CLS]`, `[SEP]` and `[PAD]`; `[DEC]` is one new id behind its vocabulary (as in BLIP-2).
    ChatGLM's: `[gMASK]`, `<eop>`, `<pad>`; any other: its begin and end tokens.

    Raises:
        ValueError: the tokenizer has no such tokens.
    """
    found = {}
    roles = {"cls": ("cls", "gmask", "bos", "eos"), "sep": ("sep", "eos"), "pad": ("pad", "sep", "eos")}
    for role, names in roles.items():
        values = [getattr(tokenizer, f"{name}_token_id", None) for name in names]
        if (value := next((value for value in values if isinstance(value, int)), None)) is None:
            raise ValueError(f"tokenizer {type(tokenizer).__name__} has no token to be {role} of a text")
        found[role] = value
    return TextIds(**found, dec=len(tokenizer), vocab_size=len(tokenizer) + 1)


def chat_settings(config: Any, generation_config: Any) -> dict[str, Any]:
    """Arguments of the collator of "chat" that follow from a model: `causal` and `stop_ids`."""
    ends = getattr(generation_config, "eos_token_id", None)
    stop_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return {"causal": not isinstance(language_model_of(config), PrefixLanguageModel), "stop_ids": stop_ids}


def on_one_day(processor: Any) -> Any:
    """The processor; of one whose chat template writes today's date, a copy that writes the same date every day: a run
    that goes on tomorrow reads the prompts of today.
    """
    template = getattr(processor, "chat_template", None)
    if "strftime_now" not in str(template):
        return processor
    logger.warning_once(
        f"the chat template writes the date into prompts: for training it is always {DAY:%d %B %Y}; chat and serve "
        "write that of the day"
    )
    processor = copy.copy(processor)
    fixed = {name: _ON_ONE_DAY + one for name, one in template.items()} if isinstance(template, dict) else None
    processor.chat_template = fixed or f"{_ON_ONE_DAY}{template}"
    return processor


class XLLMDataCollator:
    """Conversations to a batch.

    ```python
    >>> args = TrainingArguments("out", remove_unused_columns=False, label_names=["labels"])
    >>> Trainer(model, args, data_collator=XLLMDataCollator(processor), train_dataset=dataset).train()
    ```

    Each sample is `{"messages": [...]}` in Hugging Face's chat form (media as path, URL, bytes, PIL image, array or a
    `datasets` struct), the last message being the assistant's.

    Args:
        task (`str`): "chat", "transcribe" or "contrast".
        max_length (`int`, *optional*): tokens of a row of "chat", placeholders included; of a text of "contrast" (32).
        loss_on (`str`): "last" turn of the assistant, or "all"; `loss` of a turn goes before it. A conversation of n
            such answers becomes n rows, each ending with one of them (exact also for a prefix LM, which may not see
            an answer it has to give).
        causal (`bool`): the language model is causal: where the template writes earlier answers as they were asked
            for, such a conversation is one row, with its media once and the same losses.
        stop_ids: tokens that generation stops at besides the tokenizer's end token (`generation_config`).
        packing (`bool`): samples of "chat" share rows of the language model, see `xllm.modeling_xllm.packing`.
        distills (`bool`): "chat" batches get what a teacher reads, see `xllm.training.trainers.distillation`.
        augmentation (`Augmentation`, *optional*): of the log-mel features of samples that have a "seed".
        modality (`str`, *optional*): row of the model that "transcribe" or "contrast" trains; by default any row whose
            tokens follow from an item's length, or are of a fixed number.
        text_tokenizer (*optional*): what "contrast" reads texts with; by default the processor's tokenizer.

    Raises:
        ValueError: unknown task or switch.
    """

    def __init__(
        self,
        processor,
        task: str = "chat",
        max_length: int | None = None,
        loss_on: str = "last",
        augmentation: Augmentation | None = None,
        modality: str | None = None,
        text_tokenizer=None,
        causal: bool = False,
        stop_ids: Collection[int] = (),
        distills: bool = False,
        packing: bool = False,
    ):
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; choose one of {', '.join(TASKS)}")
        if loss_on not in ("last", "all"):
            raise ValueError(f"loss_on is {loss_on!r}; choose last or all")
        self.processor, self.task, self.max_length, self.loss_on = on_one_day(processor), task, max_length, loss_on
        self.augmentation, self.modality, self.text_tokenizer = augmentation, modality, text_tokenizer
        # A teacher's answers stand in rows of their own, for its prompts have other lengths.
        self.causal, self.stop_ids, self.distills = causal and not distills, tuple(stop_ids), distills
        self.packing = packing
        # Shared between workers, so that the log can count what any of them has left out.
        self._cuts = torch.zeros(len(CUTS), dtype=torch.long).share_memory_()

    def cuts(self) -> dict[str, int]:
        """What was left out of samples so far, by name; only what there is."""
        return {name: count for name, count in zip(CUTS, self._cuts.tolist()) if count}

    def _count_cut(self, name: str, advice: str) -> None:
        if not self._cuts.any():
            logger.warning(f"{name}: a sample is too long and was cut ({advice}); the log counts such samples")
        self._cuts[CUTS.index(name)] += 1

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of tensors; see the table above.

        Raises:
            ValueError: a sample without messages or answer, too long, or not of the kind the task needs.
            MediaError: a medium that cannot be decoded.
        """
        rows = [_Row(self._messages_of(sample), owner) for owner, sample in enumerate(samples)]
        try:
            return self._batch(samples, rows)
        except MediaError as error:
            raise self._placed(error, samples, rows) from error

    def _placed(self, error: MediaError, samples: Sequence[dict[str, Any]], rows: list["_Row"]) -> MediaError:
        """The error of the sample whose medium it is, with its place (which a data set of ours adds itself), and with
        what a run does about a sound that is too long."""
        for number, (sample, row) in enumerate(zip(samples, rows), start=1):
            try:
                for part, items in media_of(row.messages).items():
                    for item in items:
                        self.processor.check_length(part, self.processor.load(part, item), _TOO_LONG)
            except MediaError as own:
                place = sample.get("where", f"sample {number} of the batch")
                return own if "data" in sample else MediaError(f"{place}: {own}")
        return error

    def _batch(self, samples: Sequence[dict[str, Any]], rows: list["_Row"]) -> dict[str, torch.Tensor]:
        batch: dict[str, Any]
        if self.task == "chat":
            batch, rows = self._chat(rows)
            if self.packing:
                batch["packing"] = True
            if self.distills:
                batch[TEACHER] = self._teacher(rows, [samples[row.owner].get("equivalents") for row in rows])
        else:
            batch = {"transcribe": self._transcribe, "contrast": self._contrast}[self.task]([row[0] for row in rows])
        self._augment(batch, samples, rows)
        return batch

    @staticmethod
    def _messages_of(sample: dict[str, Any]) -> list[dict]:
        if not sample.get("messages"):
            raise ValueError(f"a sample has no messages; its keys are {', '.join(map(str, sample))}")
        messages = clean_messages(sample["messages"])
        for message in messages:
            if isinstance(message.get("content"), str):
                message["content"] = [{"type": "text", "text": message["content"]}]
        if messages[-1].get("role") != "assistant":
            raise ValueError(f"the last message is the {messages[-1].get('role')}'s, expected the assistant's answer")
        if any(part["type"] != "text" for part in messages[-1]["content"]):
            raise ValueError("the assistant's answer holds a medium; what the model learns to say is text")
        return messages

    # ---- chat -------------------------------------------------------------------------------------------------------

    def _chat(self, given: list["_Row"]) -> tuple[dict[str, Any], list["_Row"]]:
        """The batch, and its rows: conversations that end with an answer that carries loss."""
        rows = [row for one in given for row in self._split(one, together=self.causal)]
        # Where turns do not fit they are dropped, or several answers are taken apart, and the batch is made again.
        while True:
            batch = dict(self._encode_prompts(rows))
            ids, mask = batch.pop("input_ids"), batch.pop("attention_mask").bool()
            places = located(batch, mask, [row.earlier for row in rows])
            prompts = [row[keep].tolist() for row, keep in zip(ids, mask)]
            answers = self.processor.encode_answers([row.messages for row in rows], self.stop_ids)
            lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers)]
            too_long = [i for i, length in enumerate(lengths) if length > (self.max_length or math.inf)]
            apart = [i for i, row in enumerate(rows) if row.earlier and (i in too_long or places[i] is None)]
            if apart:
                rows = [
                    new for i, row in enumerate(rows) for new in (self._split(row, False) if i in apart else [row])
                ]
                continue
            if not too_long:
                # The text first: accelerate takes the first tensor's length for the number of samples.
                return {**self._pack(prompts, answers, places), **batch}, rows
            for index in too_long:
                kept = self._drop_oldest_turn(rows[index].messages, len(prompts[index]), len(answers[index]))
                self._count_cut("turns", f"its oldest turn is left out, max_length is {self.max_length}")
                rows[index] = rows[index]._replace(messages=kept)

    def _teacher(self, rows: list["_Row"], equivalents: list[list[str] | None]) -> dict[str, torch.Tensor]:
        """The rows of a batch as a language model reads them that knows what their media say."""
        prompts = [in_words(row.messages[:-1], texts) for row, texts in zip(rows, equivalents)]
        batch = self.processor.encode_conversations(prompts)
        ids = [row[keep].tolist() for row, keep in zip(batch["input_ids"], batch["attention_mask"].bool())]
        answers = self.processor.encode_answers([row.messages for row in rows], self.stop_ids)
        have = torch.tensor([texts is not None for texts in equivalents])
        return {**self._pack(ids, answers, [None] * len(rows)), "rows": have}

    def _split(self, row: "_Row", together: bool) -> list["_Row"]:
        """A row for each answer that carries loss, or one for all of them."""
        ends = answers_with_loss(row.messages, self.loss_on)
        last = row._replace(messages=row.messages[: ends[-1] + 1], earlier=())
        if together and len(ends) > 1:
            earlier = earlier_answers(self.processor, last.messages, ends[:-1], self.stop_ids)
            if earlier is not None:
                return [last._replace(earlier=tuple(earlier))]
        return [last._replace(messages=row.messages[: end + 1]) for end in ends]

    def _encode_prompts(self, rows: list["_Row"]):
        wanted = {}
        if any(row.earlier for row in rows):
            offsets = {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
            wanted["processor_kwargs"] = offsets
        prompts = [row.messages[:-1] for row in rows]
        return self.processor.encode_conversations(prompts, **wanted)

    def _drop_oldest_turn(self, messages: list[dict], prompt: int, answer: int) -> list[dict]:
        """The conversation without its oldest question and answer that hold no media."""
        questions = [index for index, message in enumerate(messages) if message["role"] == "user"]
        for start, stop in pairwise(questions):
            if not any(part["type"] != "text" for turn in messages[start:stop] for part in turn["content"]):
                return messages[:start] + messages[stop:]
        raise ValueError(
            f"a sample has {prompt} prompt and {answer} answer tokens, max_length is {self.max_length}, and there is "
            "no older turn of text to leave out; raise max_length or shorten the text"
        )

    def _pack(
        self, prompts: list[list[int]], answers: list[list[int]], places: list[list[int] | None]
    ) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        begins = tokenizer.bos_token_id
        ids, labels = [prompt + answer for prompt, answer in zip(prompts, answers)], []
        for prompt, answer, place in zip(prompts, answers, places):
            targets = [IGNORE] * len(prompt) + answer
            for index in place or ():
                targets[index] = prompt[index]
            if prompt and begins is not None and prompt[-1] == begins:
                targets[len(prompt) - 1] = begins  # ChatGLM's <sop>: learnt at [gMASK]
            labels.append(targets)
        return {
            "input_ids": pad_rows(ids, tokenizer.pad_token_id),
            "attention_mask": pad_rows([[1] * len(row) for row in ids], 0),
            "labels": pad_rows(labels, IGNORE),
        }

    # ---- stage 1 ----------------------------------------------------------------------------------------------------

    def _parts_of_task(self) -> list[str]:
        """Types of content part that the task takes: of the row that it trains, or of every row that suits it."""
        if self.modality is not None:
            return [self.processor.rows[self.modality].part]
        rows, is_listened = self.processor.rows.values(), self.task == "transcribe"
        return list(dict.fromkeys(row.part for row in rows if (row.tokens_per_item is None) == is_listened))

    def _encode_only(self, rows: list[list[dict]]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Tensors of the one medium of each sample, all of one kind, and the samples' answers."""
        wanted, media = self._parts_of_task(), defaultdict(list)
        for messages in rows:
            items = [(part, item) for part, many in media_of(messages).items() for item in many]
            if len(items) != 1 or items[0][0] not in wanted:
                got = ", ".join(part for part, _ in items) or "none"
                raise ValueError(f"task {self.task!r} takes one {' or '.join(wanted)} per sample, got {got}")
            media[items[0][0]].append(items[0][1])
        if len(media) > 1:
            raise ValueError(f"task {self.task!r} takes batches of one kind, got {' and '.join(sorted(media))}")
        inputs = {MEDIA_KINDS[part].inputs: items for part, items in media.items()}
        return dict(self.processor(**inputs, return_tensors="pt")), [text_of(messages[-1]) for messages in rows]

    def _transcribe(self, rows: list[list[dict]]) -> dict[str, torch.Tensor]:
        batch, texts = self._encode_only(rows)
        ids = [self.processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return {**batch, "labels": pad_rows(ids, IGNORE)}

    def _contrast(self, rows: list[list[dict]]) -> dict[str, torch.Tensor]:
        batch, texts = self._encode_only(rows)
        tokenizer = self.text_tokenizer or self.processor.tokenizer
        special = text_ids(tokenizer)
        longest = (self.max_length or 32) - 2
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        for row in ids:
            if len(row) > longest:
                self._count_cut("texts", f"{len(row)} tokens, max_length is {longest + 2}")
        ids = [[special.cls, *row[:longest], special.sep] for row in ids]
        mask = pad_rows([[1] * len(row) for row in ids], 0)
        return {**batch, "input_ids": pad_rows(ids, special.pad), "attention_mask": mask}

    # ---- augmentation -----------------------------------------------------------------------------------------------

    def _augment(self, batch: dict[str, torch.Tensor], samples: Sequence[dict], rows: list["_Row"]) -> None:
        if self.augmentation is None or not self.augmentation.handles("features"):
            return
        read = [row for row in self.processor.rows.values() if "features" in MEDIA_KINDS[row.part].augmented_as]
        for input_name, row in {row.input_name: row for row in read if row.input_name in batch}.items():
            features = batch[input_name]
            owners = [index for index, (messages, *_) in enumerate(rows) for _ in media_of(messages)[row.part]]
            lengths = batch[row.mask_name].sum(1).tolist()
            clips = [features[clip, :length].numpy() for clip, length in enumerate(lengths)]  # each (frames, bins)
            rngs = [
                None if seed is None else np.random.default_rng([int(seed), owners[:clip].count(owners[clip])])
                for clip, seed in enumerate(samples[rows[owner].owner].get("seed") for owner in owners)
            ]
            # A clip is known by what its sample answers; only a row with one clip says just that.
            texts = [
                text_of(rows[owner].messages[-1]) if owners.count(owner) == 1 else f"\0{owner}" for owner in owners
            ]
            for clip, changed in enumerate(self.augmentation.apply_to_features(clips, texts, rngs)):
                features[clip, : lengths[clip]] = torch.from_numpy(np.ascontiguousarray(changed))


def text_of(message: dict) -> str:
    """The text parts of a message, joined."""
    return "".join(part.get("text", "") for part in message["content"])


def pad_rows(rows: list[list[int]], value: int) -> torch.LongTensor:
    """Rows of different lengths as one tensor `(rows, longest)`, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows], dtype=torch.long)


__all__ = ["XLLMDataCollator", "chat_settings", "text_ids", "text_of"]
