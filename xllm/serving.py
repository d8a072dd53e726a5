# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`transformers serve` for X-LLM: the same server, with what it lacks for classes outside transformers.

It finds the class through `xllm.auto`'s entry in its table of models. Added here: answers streamed with a tokenizer
that is not a Rust one (ChatGLM's is sentencepiece), parts of every kind that the model reads, a video's frames counted
as the processor was set, one clear line with status 400 for a medium or request that cannot be used, and the served
model in `/v1/models`.
"""

from fastapi.responses import JSONResponse
from transformers import PreTrainedTokenizerBase
from transformers.cli.serve import Serve
from transformers.cli.serving import utils as serving_utils
from transformers.cli.serving.utils import BaseHandler, Modality

from xllm.processing.conversations import clean_part


class PythonDecodeStream:
    """`tokenizers.decoders.DecodeStream` for tokenizers in Python: ids in one by one, pieces of text out, read off a
    short window that moves on with the text, so that the cost per token does not grow.
    """

    def __init__(self, skip_special_tokens: bool):
        self.skip_special_tokens = skip_special_tokens
        self.ids: list[int] = []
        self.start = self.done = 0  # the window begins at `start`; tokens before `done` are out

    def step(self, tokenizer: PreTrainedTokenizerBase, token_id: int) -> str | None:
        """The text that `token_id` completes, or None while a character is not complete."""
        self.ids.append(token_id)
        text = self.rest(tokenizer)
        if not text or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return None
        self.start, self.done = self.done, len(self.ids)
        return text

    def rest(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text that is not out yet."""
        old = tokenizer.decode(self.ids[self.start : self.done], skip_special_tokens=self.skip_special_tokens)
        new = tokenizer.decode(self.ids[self.start :], skip_special_tokens=self.skip_special_tokens)
        return new[len(old) :]


class XLLMStreamer(serving_utils.DirectStreamer):
    """transformers' streamer, also for a tokenizer in Python."""

    def __init__(self, tokenizer, loop, queue, response_parser=None):
        super().__init__(tokenizer, loop, queue, response_parser)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            self._decode_stream = PythonDecodeStream(skip_special_tokens=response_parser is None)

    def end(self) -> None:
        is_ours = isinstance(self._decode_stream, PythonDecodeStream) and self._parser is None
        if is_ours and (rest := self._decode_stream.rest(self._tokenizer)):  # a character cut off by max_tokens
            self._enqueue(rest)
        super().end()


serving_utils.DirectStreamer = XLLMStreamer


def conversation_of(messages: list[dict], modality: Modality) -> list[dict]:
    """Messages of a request for the processor; transformers' own function drops parts of kinds that it does not know,
    here a kind that is not registered is a `ValueError`.
    """
    conversation = BaseHandler.get_processor_inputs_from_messages(
        [{**message, "content": None} for message in messages], modality
    )
    for message, parsed in zip(messages, conversation):
        content = [] if "tool_calls" in message else message.get("content") or []
        parts = [content] if isinstance(content, str) else [_chat_part(part) for part in content]
        parsed["content"] = [clean_part(part) for part in parts]
    return conversation


def _chat_part(part: dict) -> dict:
    """A part of the Responses API (`input_text`, `output_text`, `input_image`) as one of chat completions."""
    if not isinstance(part, dict) or str(part.get("type")) in part:
        return part
    if "text" in part:
        return {**part, "type": "text"}
    url = str(part.get("type")).replace("input_", "") + "_url"
    return {**part, "type": url} if url in part else part


def _refuse(_request, error: ValueError) -> JSONResponse:
    message = " ".join(str(error).split())
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status_code=400)


class XLLMServe(Serve):
    """A server that is ready to run: `XLLMServe(folder, ...).server.run()`; `start_server` runs it in a thread."""

    def __init__(self, model: str, **options):
        self._is_built = False
        super().__init__(model, non_blocking=True, **options)
        self._is_built = True
        name = self._model_manager.process_model_name(model)
        processor = self._model_manager.loaded_models[name].processor
        frames = getattr(getattr(processor, "video_processor", None), "num_frames", None)
        for handler in (self._chat_handler, self._response_handler):
            # Control and placeholder tokens in a request are text.
            handler.chat_template_kwargs["sanitize_control_tokens"] = True
            handler.get_processor_inputs_from_messages = conversation_of
            if frames is not None:  # the server's default is 32, whatever the model was trained on
                handler.chat_template_kwargs.setdefault("num_frames", frames)
        self._model_manager.get_gen_models = lambda: [{"id": model, "object": "model", "owned_by": "xllm"}]
        self.server.config.app.add_exception_handler(ValueError, _refuse)

    def start_server(self) -> None:
        if self._is_built:  # transformers' constructor would start at once
            super().start_server()
