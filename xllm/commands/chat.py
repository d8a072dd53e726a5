# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm chat MODEL [--image F] [--video F] [--speech F] [QUESTION]`: ask about files from disk; answers are streamed.

Without QUESTION it reads questions from standard input, one a line; `/image F`, `/video F`, `/speech F` add a file to the
next question, `/new` starts over, `/quit` ends.
"""

import argparse
import json
import sys


# Option (and /command) -> type of the content part.
MEDIA_OPTIONS = {"image": "image", "video": "video", "speech": "audio"}


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser("chat", help="ask about images, videos and speech", description=__doc__)
    parser.add_argument("model", help="folder or Hub id of an X-LLM")
    parser.add_argument("question", nargs="?", help="one question; without it, an interactive chat")
    for option, part in MEDIA_OPTIONS.items():
        parser.add_argument(
            f"--{option}", action=_AddMedia, dest="media", part=part, metavar="FILE", help=f"{option} file or URL"
        )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--sample", action="store_true", help="sample (top_p 0.7, temperature 0.95, as published)")
    parser.add_argument("--seed", type=int, default=0, help="seed of --sample")
    parser.add_argument("--json", action="store_true", help="print {question, answer} as JSON instead of streaming")
    parser.set_defaults(media=[])
    return parser


class _AddMedia(argparse.Action):
    """Collects media of all kinds in the order in which they are given."""

    def __init__(self, *args, part: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.part = part

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.media = [*namespace.media, {"type": self.part, "path": values}]


class Chat:
    """A conversation with one model: keeps the turns and their encoded media, streams the answers."""

    def __init__(self, model, processor, args: argparse.Namespace):
        self.model, self.processor, self.args = model, processor, args
        self.reset()

    def reset(self) -> None:
        """Forget what was said and shown."""
        self.turns, self.features = [], {}

    def ask(self, question: str, media: list[dict]) -> str:
        """The model's answer to a question about `media` (content parts) and what was said before."""
        import torch
        from transformers import TextStreamer

        content = [*media, {"type": "text", "text": question}]
        turns = [*self.turns, {"role": "user", "content": content}]
        inputs = self.processor.apply_chat_template(
            turns,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            sanitize_control_tokens=True,  # "<ImageHere>" typed by a user is text
        ).to(self.model.device)
        streamer = None
        if not self.args.json:
            streamer = TextStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling = {"do_sample": False}
        if self.args.sample:
            torch.manual_seed(self.args.seed)
            sampling = {"do_sample": True, "top_p": 0.7, "temperature": 0.95}
        # The prompt is read anew each turn (ChatGLM reads it in both directions), media are encoded once.
        features = self.model.encode_media(self._new_media(inputs), earlier=self.features)
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = self.model.generate(
            **text,
            modality_features=features,
            streamer=streamer,
            max_new_tokens=self.args.max_new_tokens,
            **sampling,
        )
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        answer = self.processor.tokenizer.decode(new_tokens, skip_special_tokens=True).strip()
        self.turns = [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.features = features
        return answer

    def _new_media(self, inputs: dict) -> dict:
        """The items among the processor's media tensors that no earlier turn has encoded."""
        new = {}
        for name, row in self.model.config.modalities.items():
            known = len(self.features[name].mask) if name in self.features else 0
            for key in (row.input_name, row.mask_name):
                if key in inputs and len(inputs[key]) > known:
                    new[key] = inputs[key][known:]
        return new


def run(args: argparse.Namespace) -> int:
    """One question, or a conversation over standard input."""
    from xllm.assembly.opening import load_checkpoint

    chat = Chat(*load_checkpoint(args.model), args)
    if args.question is not None:
        _answer(chat, args.question, args.media)
        return 0
    pending = list(args.media)
    while (line := _read_line()) is not None:
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        if command == "/new":
            chat.reset()
            pending = []
        elif command.startswith("/") and command[1:] in MEDIA_OPTIONS:
            pending.append({"type": MEDIA_OPTIONS[command[1:]], "path": rest.strip()})
        elif line:
            try:
                _answer(chat, line, pending)
            except ValueError as error:  # a file that cannot be read ends the question, not the conversation
                sys.stderr.write(f"{error}\n")
            pending = []
    return 0


def _answer(chat: Chat, question: str, media: list[dict]) -> None:
    answer = chat.ask(question, media)
    if chat.args.json:
        sys.stdout.write(json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _read_line() -> str | None:
    """The next line of standard input without white space at its ends; None at its end."""
    if sys.stdin.isatty():
        sys.stdout.write("> ")
        sys.stdout.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None
