# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' suites of models, with what they cannot know of ours put right; the tests themselves are run."""

import inspect
from unittest import mock

import torch
from conformance.suites import import_suite, take_further_suites
from conformance.xllm_testers import FIRST_WORD, LAST_WORD, XLLMTester

from xllm import ChatGLMConfig, XLLMConfig, XLLMForConditionalGeneration, XLLMModel
from xllm.modeling_xllm import stage_checkpoints


suite = import_suite("test_modeling_common")
SUBTRACT, IDS_TENSOR = torch.Tensor.__sub__, suite.ids_tensor


def difference(first: torch.Tensor, second) -> torch.Tensor:
    """Also of boolean tensors."""
    is_mask = isinstance(second, torch.Tensor) and first.dtype == second.dtype == torch.bool
    return (first ^ second).int() if is_mask else SUBTRACT(first, second)


def words(shape, vocab_size: int, *args, **kwargs) -> torch.Tensor:
    """Random ids; of a whole vocabulary, those that stand for words."""
    if vocab_size <= LAST_WORD:
        return IDS_TENSOR(shape, vocab_size, *args, **kwargs)
    return torch.randint(FIRST_WORD, LAST_WORD, tuple(shape))


class AdaptedTests(suite.ModelTesterMixin, suite.GenerationTesterMixin):
    """For all models."""

    test_can_init_all_missing_weights_before_2023 = True

    def _get_custom_4d_mask_test_data(self):
        """The suite's ids are special tokens here, and a ChatGLM prompt has two more, in front of all others."""
        ids, places, shared_ids, mask, shared_places = super()._get_custom_4d_mask_test_data()
        text = self.model_tester.get_config().get_text_config()
        start = [text.gmask_token_id, text.bos_token_id] if isinstance(text, ChatGLMConfig) else []
        more = len(start)

        def longer(tokens: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            before = torch.tensor([start] * len(tokens), dtype=torch.long).view(len(tokens), more)
            positions = torch.arange(more).expand(len(tokens), -1)
            return torch.cat([before, tokens + FIRST_WORD], 1), torch.cat([positions, places + more], 1)

        size = mask.shape[-1] + more
        whole = torch.full((1, 1, size, size), float(mask.min())).triu(1)
        whole[..., more:, more:] = mask
        return (*longer(ids, places), *(pair := longer(shared_ids, shared_places))[:1], whole, pair[1])

    def _on_padded_text(self, run) -> None:
        """The suite drops media, and looks for padding."""
        config = self.model_tester.get_config()
        ids, ending = torch.randint(FIRST_WORD, LAST_WORD, (3, 9)), self.model_tester.ending(config.get_text_config())
        ids[:, 9 - len(ending) :] = torch.tensor(ending)
        mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9, [0] + [1] * 8])
        made = config, {"input_ids": ids, "attention_mask": mask}
        with mock.patch.object(self.model_tester, "prepare_config_and_inputs_for_common", return_value=made):
            run()

    def test_eager_padding_matches_padding_free_with_position_ids(self):
        self._on_padded_text(super().test_eager_padding_matches_padding_free_with_position_ids)

    def test_sdpa_padding_matches_padding_free_with_position_ids(self):
        self._on_padded_text(super().test_sdpa_padding_matches_padding_free_with_position_ids)

    def test_model_outputs_equivalence(self):
        """A message of the suite subtracts masks, which torch refuses."""
        with mock.patch.object(torch.Tensor, "__sub__", difference):
            super().test_model_outputs_equivalence()


class AdaptedXLLMTests(AdaptedTests):
    """For an X-LLM, all of its media and a row of a user's own."""

    all_model_classes = (XLLMModel, XLLMForConditionalGeneration)
    additional_model_inputs = list(XLLMTester.media_names)
    _is_composite = True

    def run(self, result=None):
        """Random ids of the suite are words: a placeholder without media is an error."""
        with mock.patch.object(suite, "ids_tensor", words):
            return super().run(result)

    def test_model_weights_reload_no_missing_tied_weights(self):
        """It overwrites a weight file, which is refused otherwise: its SHA-256 is in config.json."""
        with mock.patch.object(stage_checkpoints, "verify_weights"):
            super().test_model_weights_reload_no_missing_tied_weights()

    def test_left_padding_compatibility(self):
        """It gives `forward` what its signature names; inputs of a user's own row are further keywords."""
        signature = inspect.signature(XLLMForConditionalGeneration.forward)
        own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("status_values", "status_mask")]
        *named, rest = signature.parameters.values()
        signature = signature.replace(parameters=[*named, *own, rest])
        with mock.patch.object(XLLMForConditionalGeneration.forward, "__signature__", signature, create=True):
            super().test_left_padding_compatibility()

    def test_generate_continue_from_inputs_embeds(self):
        """It is skipped for configs without `use_cache`, which ours has in its text_config."""
        with mock.patch.object(XLLMConfig, "use_cache", True, create=True):
            super().test_generate_continue_from_inputs_embeds()


if not take_further_suites():  # what would adapt the generation suite has nothing to adapt
    for adapted in (AdaptedTests, AdaptedXLLMTests):
        for name in [name for name in vars(adapted) if name.startswith("test_")]:
            if not hasattr(suite.ModelTesterMixin, name):
                delattr(adapted, name)
