# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What streaming costs: error rates and delays of speech that comes in chunks, beside the same files as recordings.

    python benchmarks/speech_stream.py CHECKPOINT ROWS.jsonl [--recogniser STAGE1] [--clips 100] [--settings 0.32,0.64]

ROWS.jsonl holds messages, as xllm demo leaves them in data/test_speech.jsonl. A setting is chunk and lookahead in
seconds, and left context if it is not 10. Both sides cut at pauses of 0.8 s. Without arguments nothing is measured.
"""

import argparse
import json
import sys
from pathlib import Path

import jiwer
import numpy as np
import torch

import xllm
from xllm.assembly.opening import load_checkpoint
from xllm.processing.audio_decoding import load_audio
from xllm.processing.conversations import part_source
from xllm.training.data.live_sound import file_chunks
from xllm.training.data.sound_windows import Windowing
from xllm.training.evaluation.streaming import StreamTranscriber


SETTINGS = ("0.64,0.64", "0.32,0.64", "0.32,0.32", "0.16,0.16", "0.32,0")
PAUSES = Windowing(pause=0.8)


def clips_in(rows: Path, most: int) -> list[tuple[np.ndarray, str]]:
    """The sound and the text of each row."""
    found = []
    for line in rows.read_text(encoding="utf-8").splitlines()[:most]:
        asked, answer = json.loads(line)["messages"]
        sound = next(part for part in asked["content"] if part["type"] != "text")
        found.append((load_audio(str(rows.parent / part_source(sound))), answer["content"][0]["text"]))
    return found


def cer(expected: list[str], found: list[str]) -> float:
    """Per cent, over those that are not empty."""
    pairs = [pair for pair in zip(expected, found) if pair[0]]
    return 100 * jiwer.cer(*map(list, zip(*pairs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--recogniser")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load_checkpoint(args.checkpoint)
    how: dict = {"window": PAUSES, "max_new_tokens": 24}
    if args.recogniser:
        model = xllm.XLLMForSpeechRecognition.from_pretrained(args.recogniser).eval()
        del how["max_new_tokens"]
    clips = clips_in(args.rows, args.clips)
    texts = [text for _, text in clips]
    whole = [xllm.join_segments(xllm.transcribe(model, processor, sound, **how)) for sound, _ in clips]
    print(f"{len(clips)} clips, {sum(len(sound) for sound, _ in clips) / 16_000:.1f} s; CER {cer(texts, whole):.1f}")
    for setting in args.settings:
        chunk, lookahead, left = (*map(float, setting.split(",")), 10.0)[:3]
        said, delays, received, compute = [], [], 0.0, 0.0
        for sound, _ in clips:
            stream = StreamTranscriber(model, processor, chunk=chunk, lookahead=lookahead, left=left, **how)
            segments = [one for part in file_chunks(sound, stream.rate, 0.1) for one in stream.feed(part)]
            segments += stream.finish()
            said.append(xllm.join_segments(one for one in segments if one.is_final))
            delays += [delay for one in segments if not one.is_final for delay in one.delays]
            received, compute = received + stream.received, compute + stream.compute
        same = sum(one == other for one, other in zip(said, whole))
        print(
            f"{setting}: CER {cer(texts, said):.1f}, against the recordings {cer(whole, said):.1f}, {same} the same; "
            f"bound {stream.latency:.2f} s, delay {np.mean(delays):.2f} s, {max(delays):.2f} s at most "
            f"({len(delays)} tokens); real-time factor {compute / received:.2f}"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main()
