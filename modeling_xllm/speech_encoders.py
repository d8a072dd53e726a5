# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How audio encoders of transformers read time: one table for lengths, masks, windows and placeholder counts.

A stack of convolutions with kernel k, stride s and padding p turns n positions into `floor((n + 2p - k) / s) + 1`
each. Where 2p < k, as in every encoder below, that is never more than `ceil(n / product of the strides)`: the number
of placeholders that the processor writes for a clip, which knows nothing of the encoder but that product.

Legend: N clips, L input positions (log-mel frames or samples), T encoder frames, W windows, S frames of one, R vectors
of a frame, E width.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .host_reads import Asked, check, true_places


def _mel_bins_first(tower: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    return tower(windows.transpose(1, 2)).last_hidden_state


# An encoder without a rule may lose the margin of a convolution without padding, not more.
UNKNOWN_MARGIN = 2
# Frames that CLAP's extractor makes of ten seconds; the encoder's config does not say.
CLAP_WINDOW = 1001


@dataclass(frozen=True)
class SpeechInput:
    """What a speech encoder makes of the length of its input.

    Args:
        convolutions (tuple of `(kernel, stride, padding)`): from the input to the encoder's frames.
        window: positions that the encoder reads at a time, neither more nor fewer, and without a mask (Whisper).
            Longer clips are cut into windows.
        steps: frames of a window, where no convolutions tell their number.
        vectors: per frame: the encoder gives one for each patch of the frame's spectrum, from low to high.
        read: tower and windows `(W, window, mel bins)` to vectors `(W, S * R, E)` in the order of time.
        longest: frames of the longest clip that it has positions for.
        one_by_one: padding changes the real frames too (a norm over time, convolutions that see the padding): each
            clip is encoded alone, so that a batch does not change it.
    """

    convolutions: tuple[tuple[int, int, int], ...] = ()
    window: int | None = None
    one_by_one: bool = False
    longest: int | None = None
    steps: int | None = None
    vectors: int = 1
    read: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] = _mel_bins_first

    @property
    def stride(self) -> int:
        """Input positions per encoder frame, rounded down."""
        if self.window is not None and self.steps is not None:
            return self.window // self.steps
        return math.prod(stride for _, stride, _ in self.convolutions)

    @property
    def shortest(self) -> int:
        """Positions that the first frame needs."""
        length = 1
        for kernel, stride, padding in reversed(self.convolutions):
            length = (length - 1) * stride + max(1, kernel - 2 * padding)
        return length

    def num_frames(self, length):
        """Frames of a clip of `length` positions (an `int` or a tensor of them); 0 or less for a clip too short."""
        if self.window is not None and self.steps is not None:
            return -(-length * self.steps // self.window)  # never more than the rounded stride makes placeholders
        for kernel, stride, padding in self.convolutions:
            length = (length + 2 * padding - kernel) // stride + 1
        return length


def _parakeet(config: PreTrainedConfig) -> SpeechInput:
    kernel, stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
    layers = round(math.log(config.subsampling_factor, stride))
    return SpeechInput(((kernel, stride, (kernel - 1) // 2),) * layers, longest=config.max_position_embeddings)


def _wav2vec2(config: PreTrainedConfig) -> SpeechInput:
    convolutions = [(kernel, stride, 0) for kernel, stride in zip(config.conv_kernel, config.conv_stride)]
    adapter = getattr(config, "add_adapter", False)
    if adapter:
        convolutions += [(config.adapter_kernel_size, config.adapter_stride, 1)] * config.num_adapter_layers
    return SpeechInput(tuple(convolutions), one_by_one=adapter or config.feat_extract_norm == "group")


def _sew(config: PreTrainedConfig) -> SpeechInput:
    return replace(_wav2vec2(config), one_by_one=True)  # it squeezes frames two by two, with the padding's zeros


def _wav2vec2_bert(config: PreTrainedConfig) -> SpeechInput:
    if not config.add_adapter:
        return SpeechInput()
    layer = (config.adapter_kernel_size, config.adapter_stride, config.adapter_stride // 2)
    return SpeechInput((layer,) * config.num_adapter_layers, one_by_one=True)


def _ast(config: PreTrainedConfig) -> SpeechInput:
    steps = (config.max_length - config.patch_size) // config.time_stride + 1
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1

    def read(tower: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
        patches = tower(windows).last_hidden_state[:, 2:]  # behind those for the clip as a whole
        return patches.unflatten(1, (rows, steps)).transpose(1, 2).flatten(1, 2)

    return SpeechInput(window=config.max_length, steps=steps, vectors=rows, read=read)


def _clap(config: PreTrainedConfig) -> SpeechInput:
    """HTSAT folds a spectrogram into a square, a quarter of its time above the next, and gives its map unfolded."""
    folds, patch = config.spec_size // config.num_mel_bins, config.patch_stride
    side = config.spec_size // (patch if isinstance(patch, int) else patch[0]) // 2 ** (len(config.depths) - 1)

    def read(tower: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
        if config.enable_fusion:  # four views of a clip longer than the window; here none is
            whole = windows[:, None].expand(-1, 4, -1, -1)
            states = tower(whole, is_longer=torch.zeros(len(windows), 1, device=windows.device)).last_hidden_state
        else:
            states = tower(windows[:, None]).last_hidden_state
        return states.permute(0, 3, 2, 1).flatten(1, 2)  # (W, E, R, S) -> (W, S * R, E)

    return SpeechInput(window=CLAP_WINDOW, steps=side * folds, vectors=side // folds, read=read)


RULES: dict[str, Callable[[PreTrainedConfig], SpeechInput]] = {
    "parakeet_encoder": _parakeet,
    "whisper": lambda config: SpeechInput(((3, 1, 1), (3, 2, 1)), window=2 * config.max_source_positions),
    **dict.fromkeys(("wav2vec2", "wav2vec2-conformer", "hubert", "wavlm", "unispeech-sat"), _wav2vec2),
    **dict.fromkeys(("sew", "sew-d"), _sew),
    "wav2vec2-bert": _wav2vec2_bert,
    "moonshine": lambda _: SpeechInput(((127, 64, 0), (7, 3, 0), (3, 2, 0)), one_by_one=True),
    "audio-spectrogram-transformer": _ast,
    "clap_audio_model": _clap,
    "fun_asr_nano_encoder": lambda config: SpeechInput(
        longest=config.max_position_embeddings
    ),  # SenseVoice's: the extractor stacks and skips frames
}


def speech_input(config: PreTrainedConfig) -> SpeechInput | None:
    """The rule of an encoder's config; `None` for a kind of encoder that the table does not know."""
    return RULES[config.model_type](config) if config.model_type in RULES else None


def most_positions(config: PreTrainedConfig | None) -> int | None:
    """Input positions of the longest clip that an encoder has positions for; `None` where its config sets no limit."""
    rule = None if config is None else speech_input(config)
    return None if rule is None or rule.longest is None else rule.longest * rule.stride


def output_width(config: PreTrainedConfig) -> int:
    """Width of what an encoder gives: behind its adapter, where it has one (wav2vec2), or behind its last stage; a
    `ValueError` where the config does not say."""
    if getattr(config, "add_adapter", False):
        return config.output_hidden_size
    stages = getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_dim", None)]
    if (width := getattr(config, "hidden_size", None) or stages[-1]) is None:
        raise ValueError(f"how wide the features of a {config.model_type} are, no hidden_size of its config says")
    return width


def encode_sequences(
    tower: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor | None, subsampling_factor: int = 1, **kwargs
) -> tuple[BaseModelOutput, torch.BoolTensor]:
    """Run an encoder of sequences so that a clip's frames are the same alone and in a padded batch.

    Args:
        inputs (`(N, L, features)` or `(N, L)`), mask (`(N, L)`): log-mel frames, or samples; 1 at real ones, which
            come first.
        subsampling_factor: input positions per frame of an encoder that `RULES` does not know; a clip of n positions
            is then taken to have ceil(n / factor) frames.

    Returns:
        the encoder's output with `last_hidden_state (N, T * R, E)`, and the mask `(N, T * R)` of real frames.

    Raises:
        ValueError: a clip too short for one frame, a length that is no multiple of the encoder's window, or an
            encoder that gives another number of frames than its rule says.
    """
    known = speech_input(tower.config)
    rule = known or SpeechInput(((1, subsampling_factor, 0),))
    mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device) if mask is None else mask
    lengths, L = mask.long().sum(-1), inputs.shape[1]
    expected, frames = rule.num_frames(L) * rule.vectors, rule.num_frames(lengths) * rule.vectors
    if known:
        check(
            frames > 0,
            lambda: f"a clip has {int(lengths.min())} positions; {tower.config.model_type} needs {rule.shortest}",
        )
    if rule.window is not None:
        outputs = _encode_windows(tower, inputs, mask, rule.window, rule.read)
    elif rule.one_by_one:
        numbers = Asked(lengths).values()
        clips = [tower(clip[None, :length]).last_hidden_state[0] for clip, length in zip(inputs, numbers)]
        outputs = BaseModelOutput(last_hidden_state=torch.nn.utils.rnn.pad_sequence(clips, batch_first=True))
        expected = rule.num_frames(max(numbers))
    else:
        accepted = inspect.signature(tower.forward).parameters
        mask_names = [name for name in ("attention_mask", "input_features_mask") if name in accepted]
        outputs = tower(inputs, **dict.fromkeys(mask_names[:1], mask), **kwargs)
    T = outputs.last_hidden_state.shape[1]
    if not expected - (0 if known else UNKNOWN_MARGIN) <= T <= expected:
        raise ValueError(
            f"{tower.config.model_type} gives {T} frames for an input of {L}, expected {expected}: "
            "set subsampling_factor of its modality to the input positions per encoder frame"
        )
    return outputs, torch.arange(T, device=mask.device) < frames[:, None]


def blank_sequence(tower: PreTrainedModel, subsampling_factor: int = 1) -> torch.Tensor:
    """A clip of zeros, `(1, L, features)` or `(1, L)`, of which the encoder makes two frames: a batch norm takes no
    single one.

    Raises:
        ValueError: the width of its input is not known.
    """
    rule = speech_input(tower.config)
    if rule is None:
        length = (2 + UNKNOWN_MARGIN) * subsampling_factor
    else:
        length = rule.window or rule.shortest + rule.stride
    if tower.main_input_name == "input_values" and (rule is None or rule.window is None):
        return torch.zeros(1, length)
    names = ("input_size", "num_mel_bins", "feature_projection_input_dim")
    width = next((getattr(tower.config, name) for name in names if hasattr(tower.config, name)), None)
    if width is None:
        raise ValueError(
            f"{tower.config.model_type}: a batch without sound has to run it on several processes, but how wide its "
            f"input is, none of {', '.join(names)} in its config says"
        )
    return torch.zeros(1, length, width)


def _encode_windows(tower: PreTrainedModel, inputs, mask, window: int, read: Callable) -> BaseModelOutput:
    """(N, L, mel bins) -> (N, W * S * R, E): every window with a real position in it, each for itself."""
    N, L = inputs.shape[:2]
    if L % window:
        raise ValueError(
            f"{tower.config.model_type} reads windows of {window} frames, got {L}: pad the sound to a multiple of "
            "them with silence before its features are computed, as the processor does"
        )
    used = mask.bool().reshape(N, -1, window).any(-1)  # (N, W)
    (count,) = Asked(used.sum()).values()
    places = true_places(used, count)
    windows = inputs.reshape(N * (L // window), window, -1).index_select(0, places)
    states = read(tower, windows)
    placed = states.new_zeros(used.numel(), *states.shape[1:]).index_copy(0, places, states)
    return BaseModelOutput(last_hidden_state=placed.unflatten(0, used.shape).flatten(1, 2))
