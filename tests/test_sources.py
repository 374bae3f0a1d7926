"""Pretrained weights: the same features from every source, and a clear word where one is wrong."""

import json
import re
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regard.errors import ModelError
from regard.models.encoders import load_encoder
from regard.models.processors import PROCESSORS
from regard.models.sources import read_resnet
from resnet_oracle import oracle_of, random_resnet, transformers

TIMM = {
    "architecture": "resnet18",
    "num_classes": 1000,
    "pretrained_cfg": {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
    },
}
TRANSFORMERS = {
    "model_type": "resnet",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "layer_type": "basic",
    "downsample_in_bottleneck": False,
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """A ResNet-18 with its classifier, under torchvision's names."""
    return {
        **random_resnet(18).state_dict(),
        "fc.weight": torch.zeros(1000, 512),
        "fc.bias": torch.zeros(1000),
    }


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


# --- every source -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 50])
def test_every_source_gives_the_same_features(depth: int, tmp_path: Path) -> None:
    resnet = random_resnet(depth)
    tensors = {**resnet.state_dict(), "fc.weight": torch.zeros(9, 4), "fc.bias": torch.zeros(9)}
    timm = write_folder(tmp_path / "timm", {"architecture": f"resnet{depth}"}, tensors)
    save_file(tensors, tmp_path / "torchvision.safetensors")
    torch.save(tensors, tmp_path / "torchvision.pth")
    lean = {k: v for k, v in resnet.state_dict().items() if "num_batches" not in k}
    save_file(lean, tmp_path / "lean.safetensors")
    oracle = oracle_of(resnet)
    oracle.save_pretrained(tmp_path / "bare")
    with torch.device("meta"):
        classifier = transformers.ResNetForImageClassification(oracle.config)
    classifier.resnet = oracle
    classifier.classifier[1] = torch.nn.Linear(resnet.width, 2)
    classifier.save_pretrained(tmp_path / "classifier")
    paths = [
        timm,
        tmp_path / "torchvision.safetensors",
        tmp_path / "torchvision.pth",
        tmp_path / "lean.safetensors",
        tmp_path / "bare",
        tmp_path / "classifier",
        tmp_path / "classifier" / "model.safetensors",
    ]
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = oracle(images).last_hidden_state.flatten(2).transpose(1, 2)
    hashes = set()
    for path in paths:
        encoder = load_encoder(str(path))
        assert torch.equal(encoder(images), expected), path
        assert (encoder.id, encoder.architecture) == (str(path), f"resnet{depth}")
        hashes.add(encoder.weights_hash)
    assert len(hashes) == 1


def test_half_precision_files_are_read_as_float32(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(halves, tmp_path / "half.safetensors")
    read = read_resnet(str(tmp_path / "half.safetensors")).tensors
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}


def test_preparation_comes_with_a_timm_folder(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "timm", TIMM, tensors))
    squashed = load_encoder(folder).preparation
    assert squashed.size == (224, 224)
    assert (squashed.resize, squashed.crop_fraction) == ("squash", 1.0)
    assert (squashed.mean, squashed.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert squashed.interpolation == "bicubic"
    cropped = load_encoder(folder, resize="crop", image_size=288).preparation
    assert (cropped.size, cropped.resize, cropped.crop_fraction) == ((288, 288), "crop", 0.95)


def test_preparation_comes_with_a_transformers_folder(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "hf", TRANSFORMERS, tensors)
    assert read_resnet(str(folder)).statistics.interpolation == "bilinear"
    processor = transformers.ConvNextImageProcessorPil(
        resample=3, crop_pct=0.9, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(folder)
    statistics = read_resnet(str(folder)).statistics
    assert (statistics.mean, statistics.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (statistics.interpolation, statistics.crop_fraction) == ("bicubic", 0.9)


# --- folders that cannot be used --------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "describes no encoder that is known: it has model_type None and no architecture"),
        ({"model_type": "bert"}, "describes no encoder that is known: it has model_type 'bert'"),
        (
            {"architecture": "resnet50d"},
            "is for 'resnet50d'; the networks that can be used are resn",
        ),
        (
            {"architecture": "resnet18", "model_args": {"output_stride": 8}},
            "has model_args {'output_stride': 8}",
        ),
        (
            {**TRANSFORMERS, "downsample_in_bottleneck": True, "hidden_act": "gelu"},
            "is not a ResNet v1.5: downsample_in_bottleneck is True and must be False; hidden_act "
            "is 'gelu' and must be 'relu'",
        ),
        (
            {**TRANSFORMERS, "depths": [2, 2, 2, 3]},
            "layer_type 'basic' with depths [2, 2, 2, 3] is none of ResNet-18, 34, 50, 101, 152",
        ),
        (
            {**TIMM, "pretrained_cfg": {"interpolation": "lanczos"}},
            "resized with 'lanczos'; only bilinear (2) and bicubic (3)",
        ),
        ({**TIMM, "pretrained_cfg": {"mean": [0.5]}}, "[0.5] is no mean or standard deviation"),
        ([], "config.json holds a list, not an object"),
    ],
)
def test_a_config_of_another_network_is_refused(
    config: Any, message: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "folder", config, tensors)
    with pytest.raises(ModelError, match=re.escape(message)):
        read_resnet(str(folder))


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json\. An encoder folder holds"):
        read_resnet(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not readable as JSON: Expecting"):
        read_resnet(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    with pytest.raises(ModelError, match=r"has no model\.safetensors\. Save the model again"):
        read_resnet(str(tmp_path))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin, a pickle, which is not read"):
        read_resnet(str(tmp_path))


# --- weights that cannot be used --------------------------------------------------------------


def test_every_tensor_that_does_not_fit_is_named(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    wrong = {**tensors, "extra.weight": torch.zeros(1), "bn1.weight": torch.zeros(32)}
    del wrong["layer1.0.conv1.weight"]
    folder = write_folder(tmp_path / "folder", TIMM, wrong)
    with pytest.raises(ModelError) as refusal:
        read_resnet(str(folder))
    assert (
        "does not fit ResNet-18. 1 missing: layer1.0.conv1.weight; 1 unexpected: extra.weight; "
        "1 of another shape: bn1.weight [32] instead of [64]." in str(refusal.value)
    )


def test_a_depth_that_does_not_exist_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    shallow = {k: v for k, v in tensors.items() if not k.startswith("layer4.1")}
    save_file(shallow, tmp_path / "shallow.safetensors")
    with pytest.raises(ModelError, match=r"stages of \[2, 2, 2, 1\] basic blocks are none of"):
        read_resnet(str(tmp_path / "shallow.safetensors"))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_file({"embed.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"holds no ResNet: its tensors are embed\.weight \.\.\."):
        read_resnet(str(tmp_path / "other.safetensors"))


def test_a_whole_pickled_model_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save(random_resnet(18), tmp_path / "model.pth")
    with pytest.raises(
        ModelError, match=r"model\.pth cannot be read as weights: Weights only load"
    ):
        read_resnet(str(tmp_path / "model.pth"))


def test_a_checkpoint_with_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "run.pth")
    with pytest.raises(ModelError, match="holds a dict that is not a plain state dict of tensors"):
        read_resnet(str(tmp_path / "run.pth"))


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
@pytest.mark.parametrize("kept", [0, 1000])
def test_a_cut_file_is_refused(
    name: str, kept: int, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=rf"{re.escape(name)} cannot be read as weights: \w"):
        read_resnet(str(path))


# --- the hub ----------------------------------------------------------------------------------


def test_what_is_neither_a_path_nor_a_hub_id_is_refused() -> None:
    with pytest.raises(ModelError, match="'no/such/path': there is no such file or folder, and it"):
        load_encoder("no/such/path")


def test_a_hub_out_of_reach_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # An address that refuses connections, so that the test does the same with a network.
    url = "http://127.0.0.1:9/config.json"
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: url)
    started = time.monotonic()
    with pytest.raises(ModelError) as refusal:
        load_encoder("nobody/resnet-nowhere")
    assert time.monotonic() - started < 10
    message = str(refusal.value)
    assert "'nobody/resnet-nowhere' is not on this machine and could not be fetched" in message
    assert "hf download nobody/resnet-nowhere" in message
    assert "--encoder resnet-nowhere" in message


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)
    with pytest.raises(
        ModelError, match=r"nor from an earlier download, and offline use was asked"
    ):
        load_encoder("nobody/resnet-nowhere", offline=True)


@pytest.mark.parametrize("with_preprocessor", [True, False])
def test_a_hub_repository_is_downloaded_once(
    with_preprocessor: bool,
    tensors: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = write_folder(tmp_path / "there", TRANSFORMERS, tensors)
    if with_preprocessor:
        (there / "preprocessor_config.json").write_text('{"resample": 3}')
    here = tmp_path / "here"
    here.mkdir()
    asked = []

    def metadata(url: str, timeout: float) -> None:
        assert timeout <= 10
        asked.append(url.rsplit("/", 1)[-1])
        if not (there / asked[-1]).exists():
            raise EntryNotFoundError(asked[-1])

    def download(repository: str, name: str, *, revision: str | None) -> str:
        (here / name).write_bytes((there / name).read_bytes())
        return str(here / name)

    def cached(repository: str, name: str, *, revision: str | None) -> str | None:
        return str(here / name) if (here / name).exists() else None

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    first = read_resnet("somebody/resnet-18")
    assert first.id == "somebody/resnet-18"
    assert first.statistics.interpolation == ("bicubic" if with_preprocessor else "bilinear")
    assert asked == ["config.json", *PROCESSORS, "model.safetensors"]
    asked.clear()
    second = read_resnet("somebody/resnet-18", offline=True)
    assert not asked
    expected = load_file(there / "model.safetensors")
    assert torch.equal(second.tensors["conv1.weight"], expected["conv1.weight"])
    assert second.statistics == first.statistics
