"""A model that knows nothing: random weights behind a real tokenizer and a real chat template, made in a second.

Above: the tests of this folder. It writes what a model's folder holds, as Hugging Face lays it out; vLLM reads it as it
reads any other. Its answers mean nothing, and are the same each time: weights and greedy choice have no chance in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["CONTEXT_TOKENS", "make_model"]

CONTEXT_TOKENS = 32_768
"""Prompt and answer together. Long: an answer that nobody breaks off takes a minute and more to end by itself."""
VOCABULARY = 1024
SEED = 20260801
BEGIN, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, which Qwen's models use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Of the weights, as a Llama names them."""

    hidden: int = 64
    inner: int = 128
    layers: int = 2
    heads: int = 2
    head: int = 32


def make_model(directory: Path, texts: Iterator[str]) -> None:
    """Write a model into `directory`, its tokenizer trained on `texts`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _trained(texts)
    tokenizer.save(str(directory / "tokenizer.json"))
    shape = _Shape()
    _write(directory / "tokenizer_config.json", _tokenizer_config())
    _write(directory / "config.json", _config(shape, tokenizer))
    _write(directory / "generation_config.json", {"eos_token_id": tokenizer.token_to_id(END)})
    _save_weights(directory / "model.safetensors", _weights(shape, tokenizer))


def _trained(texts: Iterator[str]) -> Tokenizer:
    """Return a byte-level BPE: it has a token for each byte, so that no text is beyond it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _config(shape: _Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "max_position_embeddings": CONTEXT_TOKENS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def _weights(shape: _Shape, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Return random weights. Special tokens and broken characters have a zero row at the output.

    Something else then always scores higher, so that every token is text that can be shown at once, and an answer ends
    by its length alone, unless a schema leaves it nothing but its end.
    """
    chance = np.random.default_rng(SEED)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (chance.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    wide = shape.heads * shape.head
    ones = np.ones(shape.hidden, dtype=np.float32)
    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, shape.hidden), "model.norm.weight": ones}
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        weights |= {f"{at}.self_attn.{name}_proj.weight": matrix(wide, shape.hidden) for name in "qkv"}
        weights |= {f"{at}.mlp.{name}_proj.weight": matrix(shape.inner, shape.hidden) for name in ("gate", "up")}
        weights[f"{at}.self_attn.o_proj.weight"] = matrix(shape.hidden, wide)
        weights[f"{at}.mlp.down_proj.weight"] = matrix(shape.hidden, shape.inner)
        weights |= {f"{at}.{name}_layernorm.weight": ones for name in ("input", "post_attention")}
    output = matrix(VOCABULARY, shape.hidden)
    for number in range(VOCABULARY):
        if not tokenizer.decode([number]).isprintable() or not tokenizer.decode([number]):
            output[number] = 0.0
    return weights | {"lm_head.weight": output}


def _save_weights(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Write safetensors: the header's length, the header in JSON, the numbers one after the other."""
    header = dict[str, Any]()
    end = 0
    for name, weight in weights.items():
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [end, end + weight.nbytes]}
        end += weight.nbytes
    described = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(len(described).to_bytes(8, "little") + described)
        for weight in weights.values():
            file.write(weight.tobytes())


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
