"""Tiny random models in the formats of others, saved as real ones are: a folder each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIDE = 32
"""Side of the photos that they expect, in pixels."""


def backbones() -> dict[str, tuple[Callable[[Any], tuple[Any, Any]], tuple[int, int], int]]:
    """By family: what makes the network and its image processor, its grid, and its width.

    The configurations differ from the defaults of their classes in all that decides where regions
    are: patches, registers, depths.
    """
    deep = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    wide = {**deep, "intermediate_size": 24}
    seen = {"image_size": SIDE, "patch_size": 8}
    steps = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    windows = {
        "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
        "image_size": SIDE, "patch_size": 4,
    }  # fmt: skip
    squash = {"size": {"height": SIDE, "width": SIDE}}
    crop = {
        "size": {"shortest_edge": 40}, "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
    }  # fmt: skip
    shortest = {"size": {"shortest_edge": SIDE}, "crop_pct": 0.8}

    # Its own processor needs torchvision; this one of the same settings does the same.
    like_dino = {
        **squash, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip

    def of(model: str, processor: str, how: dict[str, Any], **settings: Any) -> Callable:
        def make(t: Any) -> tuple[Any, Any]:
            kind = getattr(t, model)
            return kind(kind.config_class(**settings)), getattr(t, processor)(**how)

        return make

    def whole(model: str, processor: str, how: dict[str, Any], text: dict[str, Any]) -> Callable:
        def make(t: Any) -> tuple[Any, Any]:
            kind = getattr(t, model)
            config = kind.config_class(text_config={**wide, **text}, vision_config={**wide, **seen})
            return kind(config), getattr(t, processor)(**how)

        return make

    vit = "ViTImageProcessorPil"
    bit = "BitImageProcessorPil"
    words = {"vocab_size": 20, "max_position_embeddings": 8}
    four, one = (4, 4), (1, 1)
    return {
        "vit": (of("ViTForImageClassification", vit, squash, **wide, **seen), four, 16),
        "vit_msn": (of("ViTMSNModel", vit, squash, **wide, **seen), four, 16),
        "ijepa": (of("IJepaModel", vit, squash, **wide, **seen), four, 16),
        "deit": (
            of("DeiTForImageClassification", "DeiTImageProcessorPil", crop, **wide, **seen),
            four, 16,
        ),
        "beit": (
            of(
                "BeitForImageClassification", "BeitImageProcessorPil", squash, **wide, **seen,
                use_relative_position_bias=True,
            ),
            four, 16,
        ),
        "clip": (whole("CLIPModel", "CLIPImageProcessorPil", crop, words), four, 16),
        "clip_vision_model": (
            of("CLIPVisionModel", "CLIPImageProcessorPil", crop, **wide, **seen), four, 16
        ),
        "siglip": (whole("SiglipModel", "SiglipImageProcessorPil", squash, words), four, 16),
        "siglip_vision_model": (
            of("SiglipVisionModel", "SiglipImageProcessorPil", squash, **wide, **seen), four, 16
        ),
        "dinov2": (of("Dinov2Model", bit, crop, **deep, **seen), four, 16),
        "dinov2_with_registers": (
            of("Dinov2WithRegistersModel", bit, crop, **deep, **seen, num_register_tokens=3),
            four, 16,
        ),
        "dinov3_vit": (
            of(
                "DINOv3ViTModel", vit, like_dino, **wide, **seen,
                num_register_tokens=3,
            ),
            four, 16,
        ),
        "dinov3_convnext": (
            of("DINOv3ConvNextModel", vit, like_dino, **steps), one, 16
        ),
        "swin": (of("SwinForImageClassification", vit, squash, **windows), four, 16),
        "swinv2": (of("Swinv2ForImageClassification", vit, squash, **windows), four, 16),
        "convnext": (
            of("ConvNextForImageClassification", "ConvNextImageProcessorPil", shortest, **steps),
            one, 16,
        ),
        "convnextv2": (
            of("ConvNextV2ForImageClassification", "ConvNextImageProcessorPil", shortest, **steps),
            one, 16,
        ),
    }  # fmt: skip


def save_backbone(folder: Path, family: str) -> Path:
    """A random network of a family with its processor, saved by transformers."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(7)
        network, processor = backbones()[family][0](transformers)
        spread(network)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


CAPTIONS = [
    "a black dog runs through the grass .",
    "two men in red shirts are playing football !",
    "a girl climbs the stairs of a wooden playhouse",
    "naïve smörgåsbord 🙂 with dogs",
]


def save_captioner(folder: Path, kind: str, *, std: float | None = 0.5) -> Path:
    """A random captioner with its tokenizer and processor, saved by transformers.

    Args:
        folder: to be made.
        kind: ``blip``, ``git``, ``blip-2``, ``florence2``, ``vision-encoder-decoder`` (a ViT and a
            GPT-2), or ``wide-encoder``, one of those whose encoder is wider than its decoder.
        std: of the weights; none: as a training would begin.
    """
    import transformers as t

    deep = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    wide = {**deep, "intermediate_size": 24}
    vision = {**wide, "image_size": SIDE, "patch_size": 8}
    squash = {"size": {"height": SIDE, "width": SIDE}}
    words = (
        _pieces_of_words() if kind in ("blip", "git")
        else _pieces_of_bart() if kind == "florence2"
        else _pieces_of_bytes()
    )  # fmt: skip
    small = {**wide, "vocab_size": len(words), "max_position_embeddings": 48}
    gpt2 = {
        "vocab_size": len(words), "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 2,
        "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
    }  # fmt: skip
    processor: Any = t.ViTImageProcessorPil(**squash)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        if kind == "blip":
            text = {
                **small, "vocab_size": len(words) + 2, "encoder_hidden_size": 16,
                "bos_token_id": len(words), "pad_token_id": words.pad_token_id,
                "sep_token_id": words.sep_token_id, "eos_token_id": words.sep_token_id,
            }  # fmt: skip
            config = t.BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
            network = t.BlipForConditionalGeneration(config)
            processor, head = t.BlipImageProcessorPil(**squash), "text_decoder.cls.predictions.bias"
            end = words.sep_token_id
        elif kind == "git":
            config = t.GitConfig(
                **small, vision_config=vision, bos_token_id=words.cls_token_id,
                eos_token_id=words.sep_token_id, pad_token_id=words.pad_token_id,
            )  # fmt: skip
            network, head, end = t.GitForCausalLM(config), "output.bias", words.sep_token_id
            processor = t.CLIPImageProcessorPil(
                size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
            )
        elif kind == "blip-2":
            config = t.Blip2Config(
                vision_config=vision,
                qformer_config={**small, "encoder_hidden_size": 16},
                text_config={
                    "model_type": "opt", "vocab_size": len(words), "hidden_size": 16,
                    "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "max_position_embeddings": 64, "word_embed_proj_dim": 16,
                    "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
                    "pad_token_id": words.pad_token_id,
                },
                num_query_tokens=4, image_token_index=words.convert_tokens_to_ids("<image>"),
            )  # fmt: skip
            network, head, end = t.Blip2ForConditionalGeneration(config), None, None
            processor = t.BlipImageProcessorPil(**squash)
        elif kind == "florence2":
            text = {
                "model_type": "bart", "vocab_size": len(words), "d_model": 16, "encoder_layers": 2,
                "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 96,
                "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
                "pad_token_id": words.pad_token_id, "decoder_start_token_id": words.eos_token_id,
            }  # fmt: skip
            seen = {
                "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2],
                "patch_padding": [3, 1], "patch_prenorm": [False, True], "embed_dim": [8, 16],
                "num_heads": [2, 2], "num_groups": [2, 2], "window_size": 4, "projection_dim": 16,
                "model_type": "florence_vision",
            }  # fmt: skip
            config = t.Florence2Config(
                vision_config=seen, text_config=text,
                image_token_id=words.convert_tokens_to_ids("<image>"),
            )  # fmt: skip
            network, head, end = t.Florence2ForConditionalGeneration(config), None, None
            for name, value in {
                "decoder_start_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id,
                "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
                "forced_bos_token_id": words.bos_token_id, "no_repeat_ngram_size": 3,
                "forced_eos_token_id": words.eos_token_id,
            }.items():  # fmt: skip
                setattr(network.generation_config, name, value)
            processor = t.CLIPImageProcessorPil(**squash, do_center_crop=False)
            processor.image_seq_length = 1 + 16
        else:
            more = {"hidden_size": 24} if kind == "wide-encoder" else {}
            config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
                t.ViTConfig(**{**vision, **more}),
                t.GPT2Config(**gpt2, is_decoder=True, add_cross_attention=True),
            )
            config.decoder_start_token_id = words.bos_token_id
            config.pad_token_id = config.eos_token_id = words.eos_token_id
            network, head, end = t.VisionEncoderDecoderModel(config), None, None
            for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
                setattr(network.generation_config, name, getattr(config, name))
        if std is not None:
            spread(network, std)
        if kind == "blip-2":  # it shall never say its own placeholder
            network.get_input_embeddings().weight.data[config.image_token_index] = 0.0
        if head is not None and std is not None:
            network.get_parameter(head).data[end] = 2.0  # so that some captions end by themselves
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _pieces_of_words() -> Any:
    """BERT's kind of pieces: what goes on with a word begins with ``##``."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=special, show_progress=False, continuing_subword_prefix="##"
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return transformers.BertTokenizer(vocab=tokenizer.get_vocab())


def _pieces_of_bytes() -> Any:
    """GPT-2's kind of pieces: bytes, where a space begins a word."""
    import transformers

    return transformers.GPT2Tokenizer(
        **_bytes(["<|endoftext|>", "<image>"]), additional_special_tokens=["<image>"]
    )


def _pieces_of_bart() -> Any:
    """The same with BART's marks around a text."""
    import transformers

    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>"]
    return transformers.RobertaTokenizer(
        **_bytes(marks), extra_special_tokens={"image_token": "<image>"}
    )


def _bytes(special: list[str]) -> dict[str, Any]:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=328 + len(special), special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def spread(network: torch.nn.Module, std: float = 0.2) -> None:
    """Weights large enough that every part shows in the outcome.

    The beginnings of these networks are so small that positions and layers hardly count.
    """
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
