"""Backbones of transformers: regions are its own hidden states, in their places, from any family.

The networks are tiny and random, saved by transformers in each family's format, and read from there
as real ones are. The independent reference is transformers: its model class and its image
processor on the same photo.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import foreign
from regard.errors import ModelError
from regard.models.backbones import FAMILIES, TOWERS
from regard.models.encoders import encoder_from_description, load_encoder

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

KINDS = foreign.backbones()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("backbones")
    return {kind: foreign.save_backbone(place / kind, kind) for kind in KINDS}


def photo(width: int = 50, height: int = 40) -> Image.Image:
    random = np.random.default_rng(5)
    patches = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
    return patches.resize((width, height), Image.Resampling.BICUBIC)


def hidden_states(folder: Path, kind: str, pixels: Tensor, **settings: object) -> Tensor:
    """What transformers' own class makes of prepared photos: (B, tokens, D) or (B, D, H, W)."""
    vision = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
    named = FAMILIES[kind].model if kind in FAMILIES else vision[kind]
    model = getattr(transformers, named).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixels, **settings).last_hidden_state


def set_apart(states: Tensor, extra: int) -> Tensor:
    """Hidden states as regions (B, L, D), the first ``extra`` tokens left out."""
    if states.ndim == 4:
        return states.flatten(2).mT
    return states[:, extra:]


# By the papers and the configs of foreign.py: class token, distillation token, registers, mean.
EXTRA = {
    "vit": 1, "vit_msn": 1, "ijepa": 0, "deit": 2, "beit": 1, "clip": 1, "clip_vision_model": 1,
    "siglip": 0, "siglip_vision_model": 0, "dinov2": 1, "dinov2_with_registers": 4,
    "dinov3_vit": 4, "dinov3_convnext": 1, "swin": 0, "swinv2": 0, "convnext": 0, "convnextv2": 0,
}  # fmt: skip


def test_every_family_is_tested() -> None:
    assert set(KINDS) == set(EXTRA) == FAMILIES.keys() | TOWERS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_the_hidden_states_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    _, grid, width = KINDS[kind]
    folder = folders[kind]
    described = json.loads((folder / "preprocessor_config.json").read_text())
    crops = described.get("do_center_crop") or "crop_pct" in described
    encoder = load_encoder(str(folder), resize="crop" if crops else "squash")
    assert (encoder.grid, encoder.width, encoder.frozen) == (grid, width, True)
    named = described["image_processor_type"]
    processor = getattr(transformers, named if named.endswith("Pil") else f"{named}Pil")
    theirs = processor.from_pretrained(folder)(images=photo(), return_tensors="pt")["pixel_values"]
    ours = torch.from_numpy(encoder.preparation(photo()))[None]
    assert ours.shape == theirs.shape
    # Where photos are cut, we resample the part that is kept, they all and then cut.
    atol = 0.1 if encoder.preparation.resize == "crop" else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    expected = set_apart(hidden_states(folder, kind, theirs), EXTRA[kind])
    assert expected.shape == (1, grid[0] * grid[1], width)
    torch.testing.assert_close(encoder(theirs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_where_they_are_seen(kind: str, folders: dict[str, Path]) -> None:
    """A change in one place of the photo changes the region there most."""
    encoder = load_encoder(str(folders[kind]), image_size=64)
    rows, columns = encoder.grid
    assert (rows, columns) == ((8, 8) if KINDS[kind][1] == (4, 4) else (2, 2))
    plain = torch.zeros(1, 3, 64, 64)
    spotted = plain.clone()
    row, column = rows // 2, 0
    high, wide = 64 // rows, 64 // columns
    place = (slice(row * high, (row + 1) * high), slice(column * wide, (column + 1) * wide))
    spotted[:, :, *place] = 3 * torch.randn(
        3, high, wide, generator=torch.Generator().manual_seed(1)
    )
    moved = (encoder(spotted) - encoder(plain)).norm(dim=-1)[0]  # (L,)
    assert int(moved.argmax()) == row * columns + column


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k][1] == (4, 4)])
def test_other_sizes_have_interpolated_positions(kind: str, folders: dict[str, Path]) -> None:
    encoder = load_encoder(str(folders[kind]), image_size=48)
    assert encoder.grid == (6, 6)
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    takes_any_size = kind.startswith("dino")
    wish = {} if takes_any_size else {"interpolate_pos_encoding": True}
    expected = set_apart(hidden_states(folders[kind], kind, pixels, **wish), EXTRA[kind])
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder(pixels)[:1], encoder(pixels[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin"])
def test_sizes_that_do_not_fit_are_refused(kind: str, folders: dict[str, Path]) -> None:
    said = rf"50 pixels does not fit the encoder: each region of {kind} is 8 pixels wide.*48 or 56"
    with pytest.raises(ModelError, match=said):
        load_encoder(str(folders[kind]), image_size=50)


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_and_the_weights_rebuild_it(kind: str, folders: dict[str, Path]) -> None:
    encoder = load_encoder(str(folders[kind]), image_size=64, grid=2)
    description = json.loads(json.dumps(encoder.describe()))
    rebuilt = encoder_from_description(description, frozen=True)
    assert rebuilt.weights_hash != encoder.weights_hash
    rebuilt.load_state_dict(encoder.state_dict())
    assert rebuilt.describe() == encoder.describe()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    assert torch.equal(rebuilt(images), encoder(images))


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_blocks_can_be_trained(kind: str, folders: dict[str, Path]) -> None:
    encoder = load_encoder(str(folders[kind]), image_size=64)
    encoder.unfreeze(1)
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    encoder.train()
    assert not any(module.training for module in encoder.backbone.modules())
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    optimizer.step()
    last = f"network.{encoder.backbone.family.stages}.{len(encoder.backbone.stages) - 1}."
    moved = {n for n, t in encoder.backbone.state_dict().items() if not torch.equal(t, before[n])}
    assert moved
    assert all(name.startswith(last) for name in moved)
    stages = len(encoder.backbone.stages)
    with pytest.raises(ModelError, match=f"Cannot fine-tune 99 stages.*from 1 to {stages}"):
        encoder.unfreeze(99)


def test_what_changes_the_features_changes_the_hash(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    reference = load_encoder(str(folders["vit"]))
    network = transformers.ViTModel.from_pretrained(folders["vit"], num_attention_heads=4)
    network.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json",):
        (tmp_path / name).write_bytes((folders["vit"] / name).read_bytes())
    other = load_encoder(str(tmp_path))
    images = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(other(images), reference(images), atol=1e-5)
    assert other.weights_hash != reference.weights_hash


# --- grids ------------------------------------------------------------------------------------


def test_a_grid_is_the_mean_of_the_regions_in_each_cell(folders: dict[str, Path]) -> None:
    fine = load_encoder(str(folders["vit"]))
    coarse = load_encoder(str(folders["vit"]), grid=2)
    assert (coarse.grid, coarse.describe()["grid"], coarse.describe()["pooled"]) == (
        (2, 2),
        [2, 2],
        2,
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    regions = fine(images).view(2, 4, 4, 16)
    for row in range(2):
        for column in range(2):
            cell = regions[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
            torch.testing.assert_close(coarse(images)[:, 2 * row + column], cell)
    torch.testing.assert_close(coarse.fast("float32")(images), coarse(images), rtol=1e-4, atol=1e-4)
    assert coarse.weights_hash == fine.weights_hash


def test_a_grid_finer_than_the_encoders_own_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(
        ModelError, match=r"grid of 7 x 7 regions is finer than.*32 x 32 pixels: 4 x"
    ):
        load_encoder(str(folders["vit"]), grid=7)


def test_the_cache_keeps_grids_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    from regard.data.features import cache_dir

    own, two, again = (load_encoder(str(folders["vit"]), grid=grid) for grid in (None, 2, 2))
    assert cache_dir(tmp_path, own) != cache_dir(tmp_path, two) == cache_dir(tmp_path, again)


# --- preparation ------------------------------------------------------------------------------


def test_size_and_colours_come_from_the_processor(folders: dict[str, Path]) -> None:
    preparation = load_encoder(str(folders["clip"]), resize="crop").preparation
    assert preparation.size == (32, 32)
    assert preparation.crop_fraction == 32 / 40
    assert preparation.interpolation == "bicubic"
    assert preparation.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert load_encoder(str(folders["vit"])).preparation.mean == (0.5, 0.5, 0.5)


def test_a_newer_description_of_the_processor_is_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in folders["vit"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    older = tmp_path / "preprocessor_config.json"
    inner = json.loads(older.read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    older.unlink()
    assert load_encoder(str(tmp_path)).preparation == load_encoder(str(folders["vit"])).preparation


# --- folders that cannot be used --------------------------------------------------------------


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    for file in folders["vit"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_folder_without_a_processor_is_refused(copy: Path) -> None:
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json or processor_config"):
        load_encoder(str(copy))


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no model\.safetensors, only pytorch_model\.bin, a"):
        load_encoder(str(copy))


def test_weights_with_a_gap_are_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    gap = next(name for name in tensors if "layernorm_before" in name)
    del tensors[gap]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks 1 tensors, the first is layers\.0\.layernorm_before"
    ):
        load_encoder(str(copy))


def test_damaged_weights_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"The encoder .* cannot be loaded: .*Fetch its files"):
        load_encoder(str(copy))


def test_a_network_of_another_kind_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(ModelError, match=r"model_type 'siglip2'.*Expected.*beit, clip, .*vit"):
        load_encoder(str(copy))
