# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage 1 of speech on speakers it never heard: `python benchmarks/cif_recognition.py [--seed K] [--json]`.

Drawn "speech", no download: each of 10 characters is a glide of two formants over 80 mel bins, spoken in runs of 2 to
5 by speakers that differ in vocal tract (a warp of the mel axis), pace, tilt and noise, with transitions between
neighbours and pauses. Training draws from 60 speakers, the test from 20 others. A small Conformer and C-Former start
from random weights. Printed is the character error rate, before and after training: of the CIF head ("cif"), of the
CTC head alone ("ctc"), of prefix beam search over CTC alone, and of the beam ranked by both heads.
"""

import argparse
import json
import time

import torch
from transformers import ParakeetEncoderConfig
from transformers.optimization import get_cosine_schedule_with_warmup

from xllm import X2LConfig, XLLMForSpeechRecognition
from xllm.modeling_xllm.configuration_cformer import CFormerConfig
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig
from xllm.training.evaluation.metrics import cer


CHARACTERS, MELS = 10, 80
DECODINGS = {
    "cif": {"decode": "cif"},
    "ctc": {"decode": "ctc"},
    "beam of ctc": {"decode": "beam", "cif_weight": 0.0},
    "beam of both": {"decode": "beam"},
}


class Speakers:
    """Voices that read characters aloud, as log-mel frames."""

    def __init__(self, count: int, seed: int):
        shapes = torch.Generator().manual_seed(7)  # the language is the same for all
        middle = 8 + 60 * torch.rand(CHARACTERS, 2, 1, generator=shapes)
        glide = 16 * torch.rand(CHARACTERS, 2, 1, generator=shapes) - 8
        self.formants = torch.cat([middle - glide, middle + glide], -1)  # (character, formant, start and end)
        self.rng = torch.Generator().manual_seed(seed)
        self.warp = self._range(count, 0.92, 1.09)
        self.frames = self._range(count, 20, 32)  # per character
        self.tilt = self._range(count, -1.0, 1.0)
        self.noise = self._range(count, 0.3, 0.9)

    def _range(self, count: int, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=self.rng)

    def read(self, text: torch.Tensor) -> torch.Tensor:
        """`(frames, 80)` of `text (U,)` by one of the speakers, normalised per bin."""
        who = int(torch.randint(len(self.warp), (), generator=self.rng))
        places, loudness = [], []
        for character in text:
            frames = int(self.frames[who] * self._range(1, 0.75, 1.25))
            ramp = torch.linspace(0, 1, frames)[:, None]
            start, end = self.formants[character].unbind(-1)
            places.append(start + (end - start) * ramp)  # (frames, 2)
            loudness.append(torch.sin(torch.pi * ramp).clamp(min=0.3))
            if torch.rand((), generator=self.rng) < 0.5:
                pause = int(self._range(1, 5, 20))
                places.append(places[-1][-1:].expand(pause, -1))
                loudness.append(torch.zeros(pause, 1))
        places, loudness = torch.cat(places), torch.cat(loudness)
        # Formants glide from one character into the next: a mean over 7 frames.
        places = torch.nn.functional.avg_pool1d(places.T[None], 7, 1, 3, count_include_pad=False)[0].T
        bins = torch.arange(MELS) * self.warp[who]
        energy = (-0.5 * ((bins - places[..., None]) / 4) ** 2).exp().sum(1) * loudness * 3
        noise = self.noise[who] * torch.randn(energy.shape, generator=self.rng)
        features = energy + self.tilt[who] * torch.linspace(-1, 1, MELS) + noise
        return (features - features.mean(0)) / features.std(0)

    def batch(self, size: int) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
        """Inputs of the model and the texts."""
        lengths = torch.randint(2, 6, (size,), generator=self.rng).tolist()
        texts = [torch.randint(CHARACTERS, (length,), generator=self.rng) for length in lengths]
        clips = [self.read(text) for text in texts]
        features = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        mask = torch.arange(features.shape[1]) < torch.tensor([len(clip) for clip in clips])[:, None]
        inputs = {"input_features": features, "input_features_mask": mask.long()}
        return inputs, [text.tolist() for text in texts]


def build_model() -> XLLMForSpeechRecognition:
    """A Conformer of 3 layers and a C-Former of 2, width 64."""
    # At this width transformers' 0.02 leaves too little of the input behind the convolutions.
    sizes = {
        "initializer_range": 0.1,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "hidden_size": 64,
    }
    row = X2LConfig(
        encoder="audio",
        input_name="input_features",
        mask_name="input_features_mask",
        converter="cformer",
        cformer_config=CFormerConfig(cif_hidden_size=64, **sizes),
        placeholder_token="<SpeechHere>",
        subsampling_factor=8,
    )
    encoder = ParakeetEncoderConfig(**{**sizes, "num_hidden_layers": 3}, subsampling_conv_channels=16, layerdrop=0.0)
    return XLLMForSpeechRecognition(
        SpeechRecognitionConfig(
            audio_config=encoder, modalities={"speech": row}, vocab_size=CHARACTERS, ctc_weight=1.0
        )
    )


def error_rates(model: XLLMForSpeechRecognition, batches: list) -> dict[str, float]:
    """Character error rate of each way to decode."""
    model.eval()
    rates = {}
    for name, arguments in DECODINGS.items():
        references, answers = [], []
        for inputs, texts in batches:
            references += ["".join(chr(97 + token) for token in text) for text in texts]
            found = model.transcribe(**inputs, **arguments)
            answers += ["".join(chr(97 + token) for token in text) for text in found]
        rates[name] = cer(references, answers).value
    return rates


def train(model: XLLMForSpeechRecognition, speakers: Speakers, steps: int, batch_size: int) -> None:
    """AdamW, warmup and cosine, clipped gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for _ in range(steps):
        inputs, texts = speakers.batch(batch_size)
        labels = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, texts)), batch_first=True, padding_value=-100)
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    start = time.process_time()
    model, strangers = build_model(), Speakers(20, seed=1000 + arguments.seed)
    test = [strangers.batch(20) for _ in range(10)]
    before = error_rates(model, test)
    train(model, Speakers(60, seed=arguments.seed), arguments.steps, arguments.batch_size)
    after = error_rates(model, test)
    seconds = time.process_time() - start
    if arguments.json:
        print(json.dumps({"before": before, "after": after, "cpu_seconds": seconds}))
        return
    characters = sum(len(text) for _, texts in test for text in texts)
    print(f"CER on {characters} characters of 20 unknown speakers, {arguments.steps} steps, {seconds:.0f} CPU seconds")
    for name in DECODINGS:
        print(f"{name:>12}: {100 * before[name]:6.1f} % -> {100 * after[name]:5.1f} %")


if __name__ == "__main__":
    main()
