# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Tiny random checkpoints of language models of transformers, with tokens and marks of their published templates."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from processor_parts import tokenizer_of
from published_encoders import write_config


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2}
VOCAB = 288  # 256 bytes and room for special tokens and placeholders

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = CHATML.replace(
    "assistant\n' }}{% endif %}",
    "assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}",
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
    "m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GLM4 = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FALCON = (
    "{% for m in messages %}{{ ('User: ' if m.role == 'user' else 'Falcon: ') + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Falcon:' }}{% endif %}"
)
GRANITE = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """Special tokens begin with the end token; `stop` is what an answer must end with, `stops` go to
    `generation_config.json` beside the end token; `full`: the vocabulary has no row for a placeholder; `beside`: the
    template is in a file of its own, as older repositories have it."""

    repository: str
    make: Any
    special: tuple[str, ...]
    stop: str
    template: str | None = None
    stops: tuple[str, ...] = ()
    full: bool = False
    tokens: dict[str, str] = field(default_factory=dict)
    beside: bool = False

    def write(self, folder: Any) -> torch.nn.Module:
        """The published folder; returns its model."""
        tokenizer = tokenizer_of(None if self.beside else self.template, list(self.special), **self.tokens)
        torch.manual_seed(5)
        model = self.make(len(tokenizer) if self.full else VOCAB).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.15)
        ends = [tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.eos_token, *self.stops)]
        settings = {"eos_token_id": ends if self.stops else ends[0], "pad_token_id": tokenizer.pad_token_id}
        model.generation_config = hf.GenerationConfig(**settings)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if self.beside:
            text = json.dumps({"chat_template": self.template})
            Path(folder, "chat_template.json").write_text(text, encoding="utf-8")
        return model


def of(config: str, causal: str, fields: dict, **more: Any) -> Any:
    """Makes a model of `vocab_size` tokens; ids of special tokens are those of its tokenizer."""
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return lambda size: getattr(hf, causal)(getattr(hf, config)(vocab_size=size, **{**ids, **fields, **more}))


def _gemma3(size: int):
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**GROUPED, "head_dim": 8, "vocab_size": size, "pad_token_id": None, "sliding_window": 512}
    vision |= {"image_size": 28, "patch_size": 14}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=size - 1)
    return hf.Gemma3ForConditionalGeneration(config)


def _qwen2_vl(size: int):
    text = {**GROUPED, "vocab_size": size, "bos_token_id": None, "eos_token_id": None}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(text_config=text, vision_config=vision))


def _llama4(size: int):
    text = {**GROUPED, "head_dim": 8, "vocab_size": size, "intermediate_size_mlp": 32, "pad_token_id": None}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
    config = hf.Llama4Config(text_config={**text, "num_local_experts": 2}, vision_config=vision)
    return hf.Llama4ForConditionalGeneration(config)


NEO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
END, QWEN = "<|endoftext|>", ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
GEMMA_TOKENS = ("<eos>", "<end_of_turn>", "<start_of_turn>", "<bos>", "<pad>")
QWEN_PAD, GEMMA_PAD = {"pad_token": "<|endoftext|>"}, {"pad_token": "<pad>"}
MOE = {"num_local_experts": 2, "num_experts_per_tok": 1}

LANGUAGE_MODELS = {
    "GPT-2": Family("openai-community/gpt2", of("GPT2Config", "GPT2LMHeadModel", GPT), (END,), END, full=True),
    "GPT-J": Family("EleutherAI/gpt-j-6b", of("GPTJConfig", "GPTJForCausalLM", GPT, rotary_dim=4), (END,), END),
    "GPT-NeoX": Family("EleutherAI/pythia-410m", of("GPTNeoXConfig", "GPTNeoXForCausalLM", NEO), (END,), END),
    "OPT": Family(
        "facebook/opt-2.7b", of("OPTConfig", "OPTForCausalLM", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("</s>", "<pad>"), "</s>", tokens={"pad_token": "<pad>"},
    ),
    "BLOOM": Family(
        "bigscience/bloomz-560m",
        of("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("</s>", "<pad>"), "</s>", tokens={"pad_token": "<pad>"},
    ),
    "Falcon": Family(
        "tiiuae/falcon-7b-instruct",
        of("FalconConfig", "FalconForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
        (END,), END, FALCON,
    ),
    "Llama 2, a full vocabulary": Family(
        "meta-llama/Llama-2-7b-chat-hf", of("LlamaConfig", "LlamaForCausalLM", SIZES), ("</s>", "<s>"), "</s>", LLAMA2,
        full=True,
    ),
    "Llama 3": Family(
        "meta-llama/Llama-3.2-1B-Instruct", of("LlamaConfig", "LlamaForCausalLM", GROUPED, tie_word_embeddings=True),
        ("<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>", LLAMA3, stops=("<|eot_id|>",),
    ),
    "Llama 4, its language model": Family(
        "meta-llama/Llama-4-Scout-17B-16E-Instruct", _llama4,
        ("<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>", LLAMA3, stops=("<|eot_id|>",),
    ),
    "Mistral": Family(
        "mistralai/Mistral-7B-Instruct-v0.2", of("MistralConfig", "MistralForCausalLM", GROUPED, sliding_window=64),
        ("</s>", "<s>"), "</s>", MISTRAL,
    ),
    "Mixtral": Family(
        "mistralai/Mixtral-8x7B-Instruct-v0.1", of("MixtralConfig", "MixtralForCausalLM", GROUPED, **MOE),
        ("</s>", "<s>"), "</s>", MISTRAL,
    ),
    "Qwen2": Family(
        "Qwen/Qwen2.5-0.5B-Instruct", of("Qwen2Config", "Qwen2ForCausalLM", GROUPED), QWEN, "<|im_end|>", CHATML,
        stops=("<|endoftext|>",), tokens=QWEN_PAD,
    ),
    "Qwen3": Family(
        "Qwen/Qwen3-0.6B", of("Qwen3Config", "Qwen3ForCausalLM", GROUPED, head_dim=8), QWEN, "<|im_end|>", THINKING,
        stops=("<|endoftext|>",), tokens=QWEN_PAD,
    ),
    "Qwen3 MoE": Family(
        "Qwen/Qwen3-30B-A3B",
        of("Qwen3MoeConfig", "Qwen3MoeForCausalLM", GROUPED, head_dim=8, num_experts=2, num_experts_per_tok=1,
           moe_intermediate_size=16),
        QWEN, "<|im_end|>", THINKING, stops=("<|endoftext|>",), tokens=QWEN_PAD,
    ),
    "Qwen2-VL, its language model": Family(
        "Qwen/Qwen2-VL-2B-Instruct", _qwen2_vl, QWEN, "<|im_end|>", CHATML, stops=("<|endoftext|>",), tokens=QWEN_PAD,
        beside=True,
    ),
    "Gemma": Family(
        "google/gemma-2b-it", of("GemmaConfig", "GemmaForCausalLM", GROUPED, head_dim=8), GEMMA_TOKENS,
        "<end_of_turn>", GEMMA, stops=("<end_of_turn>",), tokens=GEMMA_PAD,
    ),
    "Gemma 2": Family(
        "google/gemma-2-2b-it",
        of("Gemma2Config", "Gemma2ForCausalLM", GROUPED, head_dim=8, sliding_window=64, final_logit_softcapping=2.0),
        GEMMA_TOKENS, "<end_of_turn>", GEMMA, stops=("<end_of_turn>",), tokens=GEMMA_PAD,
    ),
    "Gemma 3 1B": Family(
        "google/gemma-3-1b-it", of("Gemma3TextConfig", "Gemma3ForCausalLM", GROUPED, head_dim=8, sliding_window=64),
        GEMMA_TOKENS, "<end_of_turn>", GEMMA, stops=("<end_of_turn>",), tokens=GEMMA_PAD,
    ),
    "Gemma 3, its language model": Family(
        "google/gemma-3-4b-it", _gemma3, GEMMA_TOKENS, "<end_of_turn>", GEMMA, stops=("<end_of_turn>",),
        tokens=GEMMA_PAD,
    ),
    "Phi-2": Family("microsoft/phi-2", of("PhiConfig", "PhiForCausalLM", SIZES), (END,), END),
    "Phi-3": Family(
        "microsoft/Phi-3-mini-4k-instruct", of("Phi3Config", "Phi3ForCausalLM", GROUPED),
        (END, "<|end|>", "<|user|>", "<|assistant|>"), "<|end|>", PHI3, stops=("<|end|>",), tokens=QWEN_PAD,
    ),
    "GLM-4": Family(
        "THUDM/glm-4-9b-chat-hf", of("GlmConfig", "GlmForCausalLM", GROUPED, head_dim=8),
        (END, "<|user|>", "<|assistant|>", "[gMASK]", "<sop>"), END, GLM4, stops=("<|user|>",), tokens=QWEN_PAD,
    ),
    "GLM-4-0414": Family(
        "THUDM/GLM-4-9B-0414", of("Glm4Config", "Glm4ForCausalLM", GROUPED, head_dim=8),
        (END, "<|user|>", "<|assistant|>", "[gMASK]", "<sop>"), END, GLM4, stops=("<|user|>",), tokens=QWEN_PAD,
    ),
    "StableLM": Family(
        "stabilityai/stablelm-2-1_6b-chat", of("StableLmConfig", "StableLmForCausalLM", GROUPED),
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", CHATML, stops=("<|im_end|>",),
    ),
    "OLMo 2": Family(
        "allenai/OLMo-2-0425-1B-Instruct", of("Olmo2Config", "Olmo2ForCausalLM", GROUPED), (END, "<|pad|>"), END, PHI3,
        tokens={"pad_token": "<|pad|>"},
    ),
    "Granite": Family(
        "ibm-granite/granite-3.3-2b-instruct",
        of("GraniteConfig", "GraniteForCausalLM", GROUPED, logits_scaling=8.0, embedding_multiplier=12.0),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), "<|end_of_text|>", GRANITE,
    ),
    "Cohere": Family(
        "CohereLabs/aya-expanse-8b", of("CohereConfig", "CohereForCausalLM", GROUPED, logit_scale=0.25),
        ("<|END_OF_TURN_TOKEN|>",), "<|END_OF_TURN_TOKEN|>",
    ),
    "LFM2": Family(
        "LiquidAI/LFM2-1.2B",
        of("Lfm2Config", "Lfm2ForCausalLM", GROUPED, layer_types=["conv", "full_attention"], block_multiple_of=16),
        ("<|im_end|>", "<|im_start|>"), "<|im_end|>", CHATML,
    ),
}  # fmt: skip

STATE = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
NO_CACHE = "hands on a state instead of keys and values (past_key_values)"
WHY_STATE = "it hands on a state instead of keys and values, by which an X-LLM places media and masks padding"
CHATGLM2 = {"model_type": "chatglm", "num_layers": 28, "padded_vocab_size": 65024, "multi_query_attention": True}


def _chatglm2(size: int):
    return type("Layout", (), {"save_pretrained": lambda self, folder: write_config(folder, CHATGLM2)})()


# Name -> repository, what makes it, what the error says, and the reason in the documentation.
REFUSED = {
    "Mamba": ("state-spaces/mamba-130m-hf", of("MambaConfig", "MambaForCausalLM", STATE), NO_CACHE, WHY_STATE),
    "Falcon Mamba": (
        "tiiuae/falcon-mamba-7b", of("FalconMambaConfig", "FalconMambaForCausalLM", STATE), NO_CACHE, WHY_STATE,
    ),
    "RWKV": (
        "RWKV/rwkv-4-169m-pile",
        of("RwkvConfig", "RwkvForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}),
        NO_CACHE, WHY_STATE,
    ),
    "OPT-350m": (
        "facebook/opt-350m", of("OPTConfig", "OPTForCausalLM", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16}),
        "its embeddings are 16 wide, its layers 32", "its embeddings are narrower than its layers",
    ),
    "MiniCPM3": (
        "openbmb/MiniCPM3-4B",
        of("MiniCPM3Config", "MiniCPM3ForCausalLM", {**SIZES, "num_key_value_heads": 4}, dim_model_base=16,
           q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8),
        "the head of a minicpm3 does more than a linear layer", "its head scales hidden states by a rule of its own",
    ),
    "BERT": (
        "google-bert/bert-base-uncased",
        of("BertConfig", "BertForMaskedLM", {**SIZES, "max_position_embeddings": 16, "pad_token_id": 0}),
        "BertForMaskedLM is not a causal language model", "it fills gaps and does not write on",
    ),
    "ChatGLM2, ChatGLM3, GLM-4 with code of their own": (
        "THUDM/chatglm2-6b", _chatglm2, "ChatGLM2, ChatGLM3 or GLM-4",
        "only their remote code knows them; GLM-4 is published for transformers too (`zai-org/glm-4-9b-hf`)",
    ),
}  # fmt: skip
