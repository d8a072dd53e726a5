# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""An X-LLM as a model of lmms-eval: `python -m lmms_eval --model xllm --model_args pretrained=DIR --tasks ...`.

lmms-eval finds it by the entry point of this package. Tasks whose documents become messages (`doc_to_messages`, or
`doc_to_visual` and `doc_to_text`) and that ask for generated text are answered; likelihoods of given answers, and
conversations of several rounds, are not.
"""

from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

from xllm.assembly.opening import default_device, load_checkpoint
from xllm.processing.conversations import part_source
from xllm.training.evaluation.transcription import generated
from xllm.training.progress import ProgressLine


_OURS = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")


class LmmsEvalModel(lmms):
    """See the module.

    Args:
        pretrained: folder or Hub id of an X-LLM. batch_size: conversations at a time. device, dtype: as of `xllm
            evaluate`. trust_remote_code: run the modules that lie beside the checkpoint.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        self.batch_size = 1 if batch_size == "auto" else int(batch_size)
        place = device or default_device()
        self.model, self.processor = load_checkpoint(pretrained, trust_remote_code, place, dtype)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers in the order of the requests; those with the same settings share batches."""
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[2].items())), []).append(number)
        line, done = ProgressLine("lmms-eval", "answer", len(requests)), 0
        for numbers in groups.values():
            for start in range(0, len(numbers), self.batch_size):
                some = numbers[start : start + self.batch_size]
                for number, text in zip(some, self._answer([requests[number] for number in some])):
                    answers[number] = text
                done += len(some)
                line.update(done, is_last=done == len(requests))
        return answers

    def _answer(self, requests: list[Any]) -> list[str]:
        rows = [self._conversation(request) for request in requests]
        wanted = requests[0].args[2]
        options = {name: wanted[name] for name in _OURS if wanted.get(name) is not None}
        if not options.setdefault("do_sample", bool(options.get("temperature"))):
            options.pop("temperature", None)
            options.pop("top_p", None)
        longest = options.pop("max_new_tokens", 256)
        texts = [said["text"] for said in generated(self.model, self.processor, rows, longest, **options)]
        until = wanted.get("until") or []
        return [_before(text, [until] if isinstance(until, str) else until) for text in texts]

    def _conversation(self, request: Any) -> list[dict]:
        _, to_messages, _, number, task, split = request.args
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][number])).to_hf_messages()
        turns = []
        for turn in messages:
            content = []
            for part in turn["content"]:
                kind = part["type"]
                medium = part if kind == "text" else {kind: self.processor.load(kind, part_source(part))}
                content.append({"type": kind, **medium})
            turns.append({"role": turn["role"], "content": content})
        return turns

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not answered."""
        raise NotImplementedError("xllm answers tasks of generated text (output_type: generate_until), no likelihoods")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not answered."""
        raise NotImplementedError("xllm answers tasks of one round (output_type: generate_until)")


def _before(text: str, stops: list[str]) -> str:
    """A text up to the first of the strings that end it."""
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()


def manifest() -> ModelManifest:
    """What lmms-eval's registry wants to know; the entry point of the package."""
    return ModelManifest("xllm", chat_class_path=f"{__name__}.{LmmsEvalModel.__name__}")


__all__ = ["LmmsEvalModel", "manifest"]
