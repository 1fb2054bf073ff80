"""The carried language models' shapes and tokenizers; all are classes of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .world import SUM_CHARACTERS, review_words

SPECIAL = ("<pad>", "<end>", "<unknown>")
LONGEST = 96
"""Positions of the models: no text of the worlds is longer."""


def words_tokenizer() -> Any:
    """One token a word, the space before it included, as in GPT-2: texts and tokens map onto each other exactly."""
    words = review_words()
    return _tokenizer([*words, *(f" {word}" for word in words)], pattern=" ?[^ ]+")


def characters_tokenizer() -> Any:
    """One token a character of the sums."""
    return _tokenizer(list(SUM_CHARACTERS), pattern=".")


def _tokenizer(tokens: Sequence[str], *, pattern: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pad, end, unknown = SPECIAL
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")  # pyright: ignore
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        unk_token=unknown,
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )


def make_writer(vocabulary: int) -> Any:
    """A Llama (Touvron et al. 2023, arXiv:2302.13971) of about 0.36 million weights, embeddings tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(_config(LlamaConfig, vocabulary, width=96, layers=3, heads=4))


def make_small_writer(vocabulary: int) -> Any:
    """The same with a fifth of the weights: the student of a distillation."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(_config(LlamaConfig, vocabulary, width=48, layers=2, heads=2))


def make_classifier(vocabulary: int) -> Any:
    """A smaller Llama with a head of two classes."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = _config(LlamaConfig, vocabulary, width=48, layers=2, heads=2)
    config.id2label = {0: "negative", 1: "positive"}
    config.label2id = {"negative": 0, "positive": 1}
    return LlamaForSequenceClassification(config)


def _config(kind: Any, vocabulary: int, *, width: int, layers: int, heads: int) -> Any:
    return kind(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<end>"),
    )
