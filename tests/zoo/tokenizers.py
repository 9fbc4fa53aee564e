"""Tiny tokenizers of the kinds that pipelines use, trained on a few sentences."""

import functools
import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    CLIPTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)


SENTENCES = ["a red fox, redder than a cat", "le café noir", "一只红狐狸坐在雪地里", "a fox 🦊 in a don't 2026"]
_BYTES = pre_tokenizers.ByteLevel.alphabet()


def _trained(tokenizer, trainer):
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return json.loads(tokenizer.to_str())["model"]


@functools.cache
def qwen2_tokenizer():
    """Byte-level BPE; merges reach from one Chinese character into the next."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=_BYTES, show_progress=False)
    model = _trained(tokenizer, trainer)
    return Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


@functools.cache
def clip_tokenizer():
    """Byte-level BPE that marks the ends of words."""
    pieces = ["<|startoftext|>", "<|endoftext|>", *_BYTES, *(byte + "</w>" for byte in _BYTES)]
    merges = [("f", "o"), ("fo", "x</w>"), ("r", "e"), ("re", "d</w>")]
    pieces += ["".join(merge) for merge in merges]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)


def _unigram_vocabulary():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    vocabulary = [(piece, score) for piece, score in _trained(tokenizer, trainer)["vocab"] if piece.isascii()]
    return [*vocabulary, ("▁", -5.0), ("▁re", -4.0), ("x,", -2.0), ("▁fo", -2.0)]


@functools.cache
def unigram_tokenizer():
    """SentencePiece's unigram; other characters are bytes, and a comma goes with the letter before it."""
    vocabulary = _unigram_vocabulary() + [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def gemma_tokenizer():
    """BPE of characters whose spaces are ▁; other characters are bytes."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz,!'", "▁f", "▁fo", "▁fox"]
    merges = [("▁", "f"), ("▁f", "o"), ("▁fo", "x")]
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)


@functools.cache
def bert_tokenizer():
    """WordPiece, without accents and case; every Chinese character is a word."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=85, special_tokens=special, show_progress=False)
    return BertTokenizer(vocab=_trained(tokenizer, trainer)["vocab"])


@functools.cache
def byt5_tokenizer():
    """Bytes; what is no whole character is left out where it decodes them."""
    return ByT5Tokenizer()
