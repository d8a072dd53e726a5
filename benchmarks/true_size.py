# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Every command at the paper's size, on random weights in the published layouts: seconds and bytes of each.

    python benchmarks/true_size.py [DIR] [--size paper] [--only STEP ...] [--json]

ChatGLM-6B (fp16 shards, THUDM's layout), ViT-g with the Q-Former (BLIP-2's), a 0.6 B Conformer and BERT base are made
in DIR, 17 GB in all, and composed; then the commands run as a user runs them, each in a process of its own: what it
took, its peak resident memory (mapped pages included) and the part of it that is anonymous (which the system cannot
drop). The ratio is the peak to the bytes of all weights. `--size small` makes everything a hundredth, to try the
script. Linux; at the paper's size 24 GB of memory and 60 GB of disk.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2Model,
    OPTConfig,
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetForCTC,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm.assembly.tiny import SENTENCES, train_sentencepiece
from xllm.modeling_xllm.conversion.thudm_layout import save_thudm_checkpoint
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer


SIZES = {
    "paper": {
        "glm": {},
        "vision": {},
        "qformer": {},
        "speech": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 4096},
        "bert": {},
    },
    "small": {
        "glm": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 4096},
        "vision": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
        "qformer": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384},
        "speech": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384},
        "bert": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384},
    },
}


# ---- random weights in the published layouts ------------------------------------------------------------------------


def make_glm(folder: Path, size: dict) -> None:
    """ChatGLM in THUDM's layout, fp16, with a small vocabulary of its own in the large embedding."""
    folder.mkdir(parents=True)
    tokenizer = ChatGLMTokenizer(str(train_sentencepiece([*SENTENCES, *map(chr, range(33, 127))], folder)))
    names = ("mask", "gmask", "bos", "eos", "pad")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    config = ChatGLMConfig(**{"vocab_size": 130_528, **ids, **size})
    model = ChatGLMForConditionalGeneration._from_config(config, dtype=torch.float16)
    save_thudm_checkpoint(model, folder, tokenizer)


def make_blip2(folder: Path, vision: dict, qformer: dict) -> None:
    """ViT-g and the Q-Former as BLIP-2 stores them, around a language model of next to nothing."""
    seen = Blip2VisionConfig(initializer_range=0.02, **vision)
    asked = Blip2QFormerConfig(encoder_hidden_size=seen.hidden_size, **qformer)
    read = OPTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=64)
    config = Blip2Config(vision_config=seen, qformer_config=asked, text_config=read)
    Blip2Model._from_config(config, dtype=torch.float16).save_pretrained(folder)


def make_speech(folder: Path, size: dict) -> None:
    """A Conformer with a CTC head."""
    config = ParakeetCTCConfig(vocab_size=64, pad_token_id=0, encoder_config=ParakeetEncoderConfig(**size).to_dict())
    ParakeetForCTC._from_config(config, dtype=torch.float32).save_pretrained(folder)


def make_bert(folder: Path, size: dict) -> None:
    """What the C-Former starts from."""
    BertModel._from_config(BertConfig(vocab_size=21_128, **size)).save_pretrained(folder)


def make_media(folder: Path) -> None:
    """A picture, four seconds of sound, and a table of two rows for each stage."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(folder / "picture.png")
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((rng.standard_normal(64_000) * 2000).astype("<i2").tobytes())
    rows = {"image": {"image": "picture.png"}, "speech": {"audio": "speech.wav"}}
    for name, row in rows.items():
        lines = [json.dumps({**row, "text": SENTENCES[index]}) for index in (0, 1)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    parts = [{"type": "image", "path": "picture.png"}, {"type": "audio", "path": "speech.wav"}]
    turns = [
        {"role": "user", "content": [*parts, {"type": "text", "text": SENTENCES[1]}]},
        {"role": "assistant", "content": SENTENCES[0]},
    ]
    (folder / "mixed.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 2, encoding="utf-8")


# ---- measuring ------------------------------------------------------------------------------------------------------


def status(process: int | str, key: str) -> int:
    """Bytes of a line of /proc/PID/status."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def measured(command: list[str], until: Callable[[], bool] | None = None) -> dict[str, float]:
    """Run a command, or kill it (-9) as soon as `until` holds: seconds, and bytes of peak memory.

    Raises:
        RuntimeError: it failed; the message has its last lines.
    """
    started, peak, anonymous, killed = time.perf_counter(), 0, 0, False
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while child.poll() is None:
            try:
                peak, anonymous = max(peak, status(child.pid, "VmHWM")), max(anonymous, status(child.pid, "RssAnon"))
            except OSError:
                break  # it has just ended
            if until is not None and not killed and until():
                child.send_signal(signal.SIGKILL)
                killed = True
            time.sleep(0.01)
        code = child.wait()
        output.seek(0)
        lines = output.read().strip().splitlines()
    if code != 0 and not killed:
        raise RuntimeError(f"{' '.join(command)}: exit status {code}\n" + "\n".join(lines[-15:]))
    return {"seconds": time.perf_counter() - started, "resident": peak, "anonymous": anonymous}


def stored(folder: Path) -> int:
    """Bytes of the weight files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".bin", ".safetensors"))


def push_to_local_hub(folder: str) -> dict[str, float]:
    """`xllm push` to a server of this process that speaks the Hub's protocol."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from hub_server import WRITER, HubServer

    with HubServer() as hub:
        os.environ.update(
            {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        )
        return measured([sys.executable, "-m", "xllm", "push", folder, "user/true-size"])


# ---- the steps ------------------------------------------------------------------------------------------------------


def make(folder: Path, size: str) -> None:
    """Towers and media in `folder`."""
    torch.manual_seed(0)
    sizes = SIZES[size]
    make_glm(folder / "glm", sizes["glm"])
    make_blip2(folder / "blip2", sizes["vision"], sizes["qformer"])
    make_speech(folder / "conformer", sizes["speech"])
    make_bert(folder / "bert", sizes["bert"])
    make_media(folder)


def open_in_python(folder: str) -> None:
    """What `from_pretrained` costs by itself."""
    from xllm import XLLMForConditionalGeneration

    XLLMForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)


def steps(folder: Path, size: str) -> dict[str, Callable[[], dict[str, float]]]:
    """Name of each step -> what runs and measures it, in the order of a user's day."""
    model, runs = str(folder / "model"), folder / "runs"
    towers = {name: str(folder / name) for name in ("glm", "blip2", "conformer", "bert")}

    def xllm(*arguments: str, until: Callable[[], bool] | None = None) -> dict[str, float]:
        return measured([sys.executable, "-m", "xllm", *arguments], until)

    def child(what: str, *arguments: str) -> dict[str, float]:
        return measured([sys.executable, __file__, *arguments, "--size", size, "--child", what])

    def chat(checkpoint: str) -> dict[str, float]:
        media = ("--image", str(folder / "picture.png"), "--speech", str(folder / "speech.wav"))
        short = ("--max-new-tokens", "4", "--dtype", "bfloat16", "--device", "cpu")
        return xllm("chat", checkpoint, *media, *short, SENTENCES[1])

    def train(recipe: str, rows: str, *more: str, until: Callable[[], bool] | None = None) -> dict[str, float]:
        settings = {
            "model": model, "train": str(folder / f"{rows}.jsonl"), "output_dir": str(runs / recipe),
            "dtype": "bfloat16",
            "report_samples": 0, "trainer.max_steps": 2, "trainer.save_strategy": "steps", "trainer.save_steps": 1,
            "trainer.per_device_train_batch_size": 2, "trainer.gradient_accumulation_steps": 1,
            "trainer.dataloader_num_workers": 0, "trainer.use_cpu": "true",
        }  # fmt: skip
        return xllm("train", recipe, *(f"{key}={value}" for key, value in settings.items()), *more, until=until)

    stage2 = runs / "stage2_image" / "stage2-image"
    towers_named = ("--language-model", towers["glm"], "--encoder", f"vision={towers['blip2']}")
    sounds = ("--encoder", f"speech={towers['conformer']}", "--interface", f"speech={towers['bert']}")
    return {
        "make the towers": lambda: child("make", str(folder)),
        "xllm init": lambda: xllm("init", model, *towers_named, *sounds, "--interface", f"image={towers['blip2']}"),
        "from_pretrained, bf16": lambda: child("open", model),
        "xllm chat, picture and speech": lambda: chat(model),
        "xllm train stage2_image, killed": lambda: train(
            "stage2_image", "image", until=(stage2 / "checkpoint-1" / "manifest.json").exists
        ),
        "  and --resume": lambda: train("stage2_image", "image", "--resume"),
        "xllm train stage2_speech": lambda: train("stage2_speech", "speech"),
        "xllm train stage3, both": lambda: train("stage3", "mixed"),
        "xllm chat on the checkpoint": lambda: chat(str(stage2)),
        "xllm push to a local Hub": lambda: push_to_local_hub(str(stage2)),
    }


def main() -> None:
    """Run the steps, a line each (or JSON)."""
    parser = argparse.ArgumentParser(description="Every command at the paper's size, on random weights.")
    parser.add_argument("folder", nargs="?", default="outputs/true_size")
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--only", nargs="+", default=[], help="steps whose names contain one of these")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=("make", "open"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = Path(arguments.folder).resolve()
    if arguments.child:
        return make(folder, arguments.size) if arguments.child == "make" else open_in_python(str(folder))
    figures: dict[str, dict[str, float]] = {}
    for name, run in steps(folder, arguments.size).items():
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        figures[name] = run()
        weights = sum(stored(folder / tower) for tower in ("glm", "blip2", "conformer", "bert"))
        figures[name]["ratio"] = figures[name]["resident"] / weights
        if not arguments.json:
            took, peak, own, ratio = (figures[name][key] for key in ("seconds", "resident", "anonymous", "ratio"))
            gb = f"peak {peak / 1e9:6.2f} GB ({ratio:5.2f} x the weights), anonymous {own / 1e9:6.2f} GB"
            print(f"{name:34} {took:7.1f} s  {gb}", flush=True)
    if arguments.json:
        print(json.dumps({"weights": weights, "steps": figures}, indent=2))


if __name__ == "__main__":
    main()
