# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Every test of transformers' suites that is skipped or fails on our classes, and why.

A skip that is not listed, and a listed test that passes, are failures (see `conftest.py`). Names are "Class::test",
with shell patterns; the first that fits counts.
"""

# What the machine lacks, in the words of transformers.testing_utils.
ENVIRONMENT_SKIPS = (r"^test requires ", r"^test is slow")

NO_IDS = "a ChatGLM config of an unknown vocabulary must have its special ids, which the suite takes away"
NO_PACKING = "ChatGLM has one prompt with one [gMASK]<sop> per row: packed rows are refused by name"
SLOW_TOKENIZER = "needs a tokenizer of the tokenizers library; ChatGLM's is sentencepiece only"
LOWER_CASE = (
    "SentencePieceBackend lower-cases added tokens, but not the text before it looks for them; no published "
    "folder sets "
    "do_lower_case"
)
NO_PROCESSOR = "reads `.tokenizer` of the tokenizer, which is a processor's"

KNOWN_FAILURES = {
    "*ChatGLMModelTest::test_model_forward_default_config_values": NO_IDS,
    "ChatGLMTokenizerTest::test_added_tokens_do_lower_case": LOWER_CASE,
    "ChatGLMTokenizerTest::test_alignment_methods": SLOW_TOKENIZER,
    "ChatGLMTokenizerTest::test_chat_template_save_loading": NO_PROCESSOR,
}

NO_CONVERSION = "parameters keep their checkpoint names: there is nothing to convert"
NO_FP32_LIST = "no module of the language model alone is kept in fp32"
NOT_ROPE = "checks rotary classes of one position channel by name; ours has its own tests"

KNOWN_SKIPS = {
    "*ModelTest::test_can_load_from_already_mapped_keys": NO_CONVERSION,
    "*ModelTest::test_reverse_loading_mapping": NO_CONVERSION,
    "ChatGLMModelTest::test_keep_in_fp32_modules": NO_FP32_LIST,
    "ChatGLMModelTest::test_keep_in_fp32_modules_exist": NO_FP32_LIST,
    "*ModelTest::test_encoder_decoder_loss_no_double_shift": "no encoder-decoder",
    "*ModelTest::test_moe_models_record_router_logits": "no experts",
    "*ModelTest::test_output_router_logits_from_config": "no experts",
    "*ModelTest::test_eager_matches_batched_and_grouped_inference_*": "no experts",
    "*ModelTest::test_sliding_window_mask": "no sliding window",
    "*ModelTest::test_resize_position_vector_embeddings": "no position embeddings in the language model",
    "*ModelTest::test_vision_axial_rope": NOT_ROPE,
    "*ChatGLMModelTest::test_model_rope_*": NOT_ROPE,
    "XLLMOver[LT]*ModelTest::test_model_rope_with_partial_rotation": "Llama and Qwen3 turn whole heads",
    "XLLMOver*ModelTest::test_sdpa_can_dispatch_non_composite_models": "a composite model",
    "ChatGLMModelTest::test_attn_implementation_composite_models": "not a composite model",
    "ChatGLMModelTest::test_can_set_attention_dynamically_composite_model": "not a composite model",
    "ChatGLMModelTest::test_sdpa_can_dispatch_composite_models": "not a composite model",
    "ChatGLMModelTest::test_internal_model_config_and_subconfig_are_same": "not a composite model",
    "XLLMVideoProcessorTest::test_override_instance_attributes_does_not_affect_other_instances": "expects sizes to be "
    "dicts; transformers 5 makes them SizeDict",
    "XLLMVideoProcessorTest::test_video_processor_preprocess_arguments": "looks for a check of argument names that "
    "transformers' own base class no longer has",
    "XLLMProcessorTest::test_apply_chat_template_tool_calls_no_content": "the plain template knows no tools",
    "ChatGLMTokenizerTest::test_bos_token_with_add_bos_token_*": "no add_bos_token: <sop> opens the answer",
    "ChatGLMTokenizerTest::test_chat_template_return_assistant_tokens_mask*": SLOW_TOKENIZER,
    "ChatGLMTokenizerTest::test_sequence_ids": SLOW_TOKENIZER,
    "ChatGLMTokenizerTest::test_compare_add_special_tokens": SLOW_TOKENIZER,
    "ChatGLMTokenizerTest::test_special_tokens_initialization": SLOW_TOKENIZER,
    "ChatGLMTokenizerTest::test_add_tokens": SLOW_TOKENIZER,
    "ChatGLMTokenizerTest::test_add_special_tokens": "empty in the suite",
    "ChatGLMTokenizerTest::test_integration": "needs the published vocabulary",
    "ChatGLMTokenizerTest::test_integration_from_extractor": "needs the published vocabulary",
    "ChatGLMTokenizerTest::test_prepare_seq2seq_batch": "not for encoder-decoders",
}

# Tests of ours in the place of the suite's: each runs the suite's own, but for what is said here.
ADAPTED = {
    "*ModelTest::test_model_outputs_equivalence": "its message may subtract masks",
    "XLLMOver*ModelTest::test_model_weights_reload_no_missing_tied_weights": "it may overwrite a weight file, which "
    "is refused otherwise: its SHA-256 is in config.json",
    "XLLMProcessorTest::test_apply_chat_template_video_frame_sampling": "all but its last demand, an error: "
    "frames given as pictures are sampled like any film",
    "XLLMVideoProcessorTest::test_call_sample_frames": "all but its last demand, an error: a film with "
    "fewer frames than asked for gives all it has",
    "XLLMVideoProcessorTest::test_video_processor_from_dict_with_kwargs": "with our sizes in the place of another's",
}

# The same of the generation and exporter suites, which are not run everywhere.
FURTHER_ADAPTED = {
    "*ModelTest::test_*_padding_matches_padding_free_with_position_ids": "on padded text; it drops media",
    "XLLMOver*ModelTest::test_left_padding_compatibility": "it also hands on the inputs of a user's own row",
    "XLLMOver*ModelTest::test_generate_continue_from_inputs_embeds": "not skipped for configs of several parts",
}

FURTHER_FAILURES = {
    "*ChatGLMModelTest::test_*_padding_matches_padding_free_with_position_ids": NO_PACKING,
}

FURTHER_SKIPS = {
    "*ModelTest::test_generate_with_mtp": "no layers that predict several tokens",
    "*ModelTest::test_recurrent_layers_mask_padding_on_continued_forward": "no recurrent layers",
}
