# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation may ask of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task of `xllm evaluate`.

    Args:
        metric (`str`): one of `xllm.training.evaluation.metrics.METRICS`.
        hub_task (`str`): its name in a model card's results.
        stage_one (`str`, *optional*): objective of stage 1 whose model can do it too.
    """

    metric: str
    hub_task: str
    stage_one: str | None = None


TASKS = {
    "asr": Task("cer", "automatic-speech-recognition", stage_one="recognition"),
    "caption": Task("cer", "image-to-text"),
    "qa": Task("accuracy", "visual-question-answering"),
}


__all__ = ["TASKS", "Task"]
