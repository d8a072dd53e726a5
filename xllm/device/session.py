# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Commands in a conversation: what an answer may be, and what becomes of it."""

import importlib
from typing import Any

from xllm.device.commands import DeviceCommands, Refused
from xllm.device.device_status import DeviceStatus


class DeviceSession:
    """The commands of a model's device, and perhaps the device that executes them.

    Args:
        processor (`XLLMProcessor`): one of its readers declares `commands`.
        executor (`str`, *optional*): "module:Class"; the class takes a state and has `execute(command)`, which gives
            the next state or raises `Refused`. Without it nothing is ever executed.

    Raises:
        ValueError: no reader declares commands, or there is no such class.
    """

    def __init__(self, processor: Any, executor: str | None = None):
        declared = [schema for reader in processor.readers.values() if (schema := getattr(reader, "commands", None))]
        if not declared:
            raise ValueError(
                "--commands: the model's device declares none: give it commands in the file of its status"
            )
        self.tokenizer, self.commands = processor.tokenizer, DeviceCommands(declared[0])
        self._name, self._make = f"--execute {executor}", _class(executor) if executor else None
        self.reset()

    def reset(self) -> None:
        """Forget the device's state."""
        self._device: Any = None

    def look(self, content: list[dict]) -> None:
        """Take the state of the last status among the parts of a message."""
        states = [value.state for part in content for value in part.values() if isinstance(value, DeviceStatus)]
        if states and self._make:
            try:
                self._device = self._make(states[-1])
            except Exception as error:
                raise ValueError(f"{self._name}: cannot be made of a state: {error!r}") from error

    def decoding(self, model: Any) -> dict[str, Any]:
        """Arguments of one call of `generate`."""
        vocabulary, ends = model.config.text_config.vocab_size, model.generation_config.eos_token_id
        return {"logits_processor": [self.commands.logits_processor(self.tokenizer, vocabulary, ends)]}

    def act(self, answer: str) -> dict[str, Any]:
        """What comes of an answer: nothing of text; of a command, with a device, its `state`, or why it `refused`."""
        if not self.commands.is_command(answer):
            return {}
        try:
            command = self.commands.parse(answer)
            if self._make is None:
                return {}
            if self._device is None:
                raise Refused("no status has been given, so the state of the device is not known")
            return {"state": self._device.execute(command)}
        except Refused as refused:
            return {"refused": str(refused)}
        except Exception as error:
            raise ValueError(
                f"{self._name}: fails at {answer}: {error!r}; what it cannot do it has to refuse"
            ) from error


def _class(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--execute {name}: {error}") from error
    if not callable(getattr(found, "execute", None)):
        raise ValueError(f"--execute {name}: expected MODULE:CLASS, a class with a method `execute`")
    return found
