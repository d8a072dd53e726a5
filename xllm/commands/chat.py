# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm chat MODEL [--KIND FILE ...] [QUESTION]`: ask about files from disk; answers are streamed.

KIND is what a row of the model reads: --image, --video and --speech for the paper's rows, others with --module;
`xllm inspect MODEL` lists them. Without QUESTION it reads questions from standard input, one a line; `/KIND FILE` adds
a file to the next question, an empty line asks with the files alone (a spoken question, say), `/undo` takes one back,
`/help` lists the rest, and Ctrl-C stops an answer. With --json, each answer is one line of JSON.

With --commands an answer is text or a command that the model's device declares, as JSON, and nothing in between. It is
printed and not executed, unless --execute names a device: that is made of the last status given, and its new state, or
why it refuses, is printed.

With --window the question is asked about each window of a recording of any length (without a question, what is said
there), and each answer is printed with its time; what is silent is said to be silence.

With --stream FILE (or "-"), or --microphone, what is said is printed as it is spoken, and for good at each pause.
"""

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any

from xllm import live_chat


def add_arguments(parser: Any) -> None:
    """Declare its arguments."""
    live_chat.add_arguments(parser)
    parser.takes_media = True
    parser.add_argument("model", help="folder or Hub id of an X-LLM")
    parser.add_argument("question", nargs="?", help="one question; without it, an interactive chat")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--sample", action="store_true", help="sample (top_p 0.7, temperature 0.95, as published)")
    parser.add_argument("--seed", type=int, default=0, help="seed of --sample")
    what = "ask about windows of at most so many seconds of a recording, one after the other"
    parser.add_argument("--window", type=float, metavar="SECONDS", help=what)
    what = "hear the sound of each film as well, as this row of the model (repeatable)"
    parser.add_argument("--track", action="append", default=[], metavar="ROW", help=what)
    parser.add_argument("--commands", action="store_true", help="answer with text, or a valid command to the device")
    what = "class that executes the commands, e.g. xllm.device.phone:Phone (with --commands)"
    parser.add_argument("--execute", metavar="MODULE:CLASS", help=what)


def media_options(modalities: dict) -> dict[str, str]:
    """Options (and /commands) -> type of content part: names of the kinds that a model reads, and of its rows."""
    from xllm.processing.media_kinds import MEDIA_KINDS
    from xllm.training.data.media_rows import parts_of_rows

    parts = {name: part for name, part in parts_of_rows(modalities).items() if part in MEDIA_KINDS}
    return {**{MEDIA_KINDS[part].option or part: part for part in parts.values()}, **parts}


class Chat:
    """A conversation with one model: keeps the turns and their encoded media, streams the answers."""

    def __init__(self, model, processor, args: argparse.Namespace):
        self.model, self.processor, self.args = model, processor, args
        self.device = None
        self.stoppable = False  # whether Ctrl-C ends the answer alone, which is what has been said by then
        if args.commands or args.execute:
            from xllm.device.session import DeviceSession

            self.device = DeviceSession(processor, args.execute)
        self.reset()

    def reset(self) -> None:
        """Forget what was said and shown."""
        self.turns: list[dict] = []
        self.features: dict[str, Any] = {}  # row -> what its media have been encoded to
        self.earlier: list[tuple[list[dict], dict[str, Any]]] = []  # both before each question
        if self.device:
            self.device.reset()

    def undo(self) -> bool:
        """Take the last question and its answer back; whether there was one."""
        if self.earlier:
            self.turns, self.features = self.earlier.pop()
            return True
        return False

    def messages(self) -> list[dict]:
        """The conversation with files for media, as data hold it."""
        return [{**turn, "content": [_with_file(part) for part in turn["content"]]} for turn in self.turns]

    def ask(self, question: str, media: list[dict]) -> str:
        """The model's answer to a question about `media` (content parts) and what was said before."""
        import torch

        from xllm.processing.conversations import part_source, with_track

        # Files are opened once; later turns hold what was decoded.
        content = []
        for part in [part for given in media for part in with_track(given)]:
            loaded = {"type": part["type"], part["type"]: self.processor.load(part["type"], part_source(part))}
            named = [part[key] for key in ("file", "path", part["type"]) if isinstance(part.get(key), str)]
            content.append({**loaded, **({"file": named[0]} if named else {})})
        if self.device:
            self.device.look(content)
        turns = [*self.turns, {"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        # "<ImageHere>" typed by a user is text.
        inputs = self.processor.encode_conversations([turns], sanitize_control_tokens=True).to(self.model.device)
        said = _Said(self.processor.tokenizer, is_silent=self.args.json)
        streamer = None if self.args.json and not self.stoppable else said
        sampling: dict[str, Any] = {"do_sample": False}
        if self.args.sample:
            torch.manual_seed(self.args.seed)
            sampling = {"do_sample": True, "top_p": 0.7, "temperature": 0.95}
        # The prompt is read anew each turn (ChatGLM reads it in both directions), media are encoded once.
        features = self.model.encode_media(self._new_media(inputs), earlier=self.features)
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if self.device:
            sampling |= self.device.decoding(self.model)
        sampling |= {"streamer": streamer, "max_new_tokens": self.args.max_new_tokens}
        try:
            output = self.model.generate(**text, modality_features=features, **sampling)
            new_tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        except KeyboardInterrupt:
            if not self.stoppable:
                raise
            said.end()
            new_tokens = said.ids
        answer = self.processor.tokenizer.decode(new_tokens, skip_special_tokens=True).strip()
        self.earlier.append((self.turns, self.features))
        self.turns = [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.features = features
        return answer

    def _new_media(self, inputs: dict) -> dict:
        """The items among the processor's media tensors that no earlier turn has encoded."""
        new: dict[str, Any] = {}
        for name, row in self.model.config.modalities.items():
            known = len(self.features[name].mask) if name in self.features else 0
            for key in (row.input_name, row.mask_name):
                if key in inputs and len(inputs[key]) > known:
                    new[key] = inputs[key][known:]
        return new


def run(args: argparse.Namespace) -> None:
    """One question, or a conversation over standard input."""
    from xllm.assembly.opening import default_device, load_checkpoint, open_config

    options = media_options(open_config(args.model, args.trust_remote_code)[2].modalities)
    pending = _media_given(args, options)
    is_stream = live_chat.is_asked(args)
    if args.window is not None and not is_stream and (len(pending) != 1 or args.commands or args.execute):
        args.wrong_usage("argument --window: it takes one recording, and no --commands")
    place = args.device or default_device()
    model, processor = load_checkpoint(args.model, args.trust_remote_code, place, args.dtype)
    if is_stream:
        live_chat.run_stream(model, processor, args)
        return
    if args.window is not None:
        _ask_by_windows(model, processor, args, pending[0])
        return
    chat = Chat(model, processor, args)
    if args.question is not None:
        _answer(chat, args.question, pending)
        return
    from xllm.terminal_chat import TerminalChat

    parts = {name: partial(_part, args, options, name) for name in options}
    TerminalChat(chat, parts, partial(_answer, chat)).run(pending)


def _media_given(args: argparse.Namespace, options: dict[str, str]) -> list[dict]:
    from xllm.processing.media_kinds import AUDIO, MEDIA_KINDS

    known = [f"--{name}" for name in options]
    asked = [option for option, _ in args.media] + [f"--{name}" for name in args.track]
    for option in asked:
        if option not in known:
            args.wrong_usage(f"argument {option}: this model takes {', '.join(known) or 'no media'}")
    if deaf := [name for name in args.track if "picture" in MEDIA_KINDS[options[name]].augmented_as]:
        args.wrong_usage(f"argument --track: {deaf[0]} reads pictures: name a row that reads sound")
    films = [option for option, _ in args.media if MEDIA_KINDS[options[option.removeprefix("--")]].series]
    if args.track and args.question is not None and not films:
        args.wrong_usage("argument --track: it is of a film's sound, and no film is given")
    if live_chat.is_asked(args) and AUDIO.type not in options.values():
        args.wrong_usage(f"arguments --stream, --microphone: no speech is read; this model takes {', '.join(known)}")
    return [_part(args, options, option.removeprefix("--"), file) for option, file in args.media]


def _part(args: argparse.Namespace, options: dict[str, str], option: str, file: str) -> dict:
    """A content part; of a film, with what its sound is heard as."""
    from xllm.processing.media_kinds import MEDIA_KINDS

    part: dict[str, Any] = {"type": options[option], "path": file}
    if args.track and MEDIA_KINDS[options[option]].series:
        part["track"] = [options[name] for name in args.track]
    return part


def _ask_by_windows(model, processor, args: argparse.Namespace, part: dict) -> None:
    """Print the answer about each window of a recording as it comes, and what became of the windows."""
    import torch

    from xllm.training.evaluation.transcription import transcribe

    options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens}
    if args.sample:
        torch.manual_seed(args.seed)
        options |= {"do_sample": True, "top_p": 0.7, "temperature": 0.95}
    given = {"prompt": args.question, "kind": part["type"], "window": args.window}
    counts: Counter = Counter()
    for segment in transcribe(model, processor, part["path"], **given, **options):
        counts.update(["windows"], silent=segment.silent, divided=segment.divides, cut=segment.is_cut)
        fields = {name: value for name, value in asdict(segment).items() if value is not None}
        sys.stdout.write((json.dumps(fields, ensure_ascii=False) if args.json else str(segment)) + "\n")
        sys.stdout.flush()
    sys.stderr.write(
        f"{counts['windows']} windows: {counts['silent']} of silence, {counts['divided']} that end in the midst of "
        f"sound, {counts['cut']} whose answer was cut after {args.max_new_tokens} tokens\n"
    )


def _answer(chat: Chat, question: str, media: list[dict]) -> None:
    answer = chat.ask(question, media)
    done = chat.device.act(answer) if chat.device else {}
    if chat.args.json:
        sys.stdout.write(json.dumps({"question": question, "answer": answer, **done}, ensure_ascii=False) + "\n")
    else:
        sys.stdout.writelines(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in done.items())
    sys.stdout.flush()


def _with_file(part: dict) -> dict:
    """A part of a turn as data hold it; what came from no file is named by its kind."""
    if part["type"] == "text":
        return part
    return {"type": part["type"], "path": os.path.abspath(part["file"]) if "file" in part else f"<{part['type']}>"}


class _Said:
    """A streamer that keeps the tokens of the answer, and prints it unless it is silent."""

    skip_prompt = True

    def __init__(self, tokenizer: Any, is_silent: bool):
        from transformers import TextStreamer

        self.ids: list[int] = []
        self._shown = None if is_silent else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """The prompt, then a token at a time."""
        if not self._is_prompt:
            self.ids += value.reshape(-1).tolist()
        self._is_prompt = False
        if self._shown:
            self._shown.put(value)

    def end(self) -> None:
        """The answer is complete."""
        if self._shown:
            self._shown.end()
