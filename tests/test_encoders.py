"""The encoder: frozen means frozen, and a description leads back to the same network."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regard.errors import ModelError
from regard.images import Preparation, open_photo
from regard.models.encoders import Encoder, encoder_from_description, load_encoder
from regard.models.resnet import ResNet
from regard.models.small import SmallEncoder

SHARED = Path(os.environ.get("REGARD_SHARED", Path(__file__).parents[2] / "shared"))


def resnet18(*, frozen: bool = True) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(18)
        backbone = ResNet(depth=18)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.0)
                module.weight.data.uniform_(0.5, 1.0)
    return Encoder(
        id="random", backbone=backbone, preparation=Preparation(size=(64, 96)), frozen=frozen
    )


def photos(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def assert_same_state(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


# --- regions ----------------------------------------------------------------------------------


def test_regions_go_row_by_row() -> None:
    encoder = resnet18()
    assert encoder.grid == (2, 3)
    regions = encoder(photos())
    assert regions.shape == (2, 6, 512)
    grid = encoder.backbone(photos())
    for row in range(2):
        for column in range(3):
            assert torch.equal(regions[:, 3 * row + column], grid[:, :, row, column])


def test_alone_equals_in_a_batch() -> None:
    encoder = resnet18()
    batch = photos(3)
    torch.testing.assert_close(encoder(batch)[1:2], encoder(batch[1:2]))


# --- frozen -----------------------------------------------------------------------------------


def test_a_frozen_encoder_stays_in_eval_mode_whatever_is_around_it() -> None:
    encoder = resnet18()
    around = nn.ModuleList([nn.Sequential(encoder, nn.Dropout())])
    around.train()
    assert around[0].training
    assert not any(module.training for module in encoder.modules())


def test_a_frozen_encoder_builds_no_graph() -> None:
    encoder = resnet18()
    regions = encoder(photos().requires_grad_())
    assert not regions.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.is_grad_enabled()


def test_training_a_decoder_leaves_a_frozen_encoder_as_it_was() -> None:
    encoder = resnet18()
    before, hash_before = state_of(encoder), encoder.weights_hash
    model = nn.Sequential(encoder, nn.Linear(512, 2)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(photos()).square().mean().backward()
        optimizer.step()
    assert_same_state(before, encoder.state_dict())
    assert encoder.weights_hash == hash_before


# --- fine-tuning ------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 3])
def test_unfreezing_trains_the_last_stages_and_no_statistics(stages: int) -> None:
    encoder = resnet18()
    encoder.unfreeze(stages)
    before = state_of(encoder.backbone)
    model = nn.Sequential(encoder, nn.Linear(512, 2)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(photos()).square().mean().backward()
    optimizer.step()
    open_stages = {f"layer{5 - i}" for i in range(1, stages + 1)}
    parameters = dict(encoder.backbone.named_parameters())
    for name, after in encoder.backbone.state_dict().items():
        may_move = name in parameters and name.split(".")[0] in open_stages
        assert torch.equal(before[name], after) != may_move, name


@pytest.mark.parametrize("stages", [0, 5])
def test_stages_that_do_not_exist_are_refused(stages: int) -> None:
    with pytest.raises(ModelError, match=rf"Cannot fine-tune {stages} stages.*from 1 to 4"):
        resnet18().unfreeze(stages)


def test_the_small_encoder_is_never_frozen() -> None:
    encoder = load_encoder("small")
    assert not encoder.frozen
    assert encoder.train().training
    assert encoder(torch.randn(1, 3, 112, 112)).requires_grad
    with pytest.raises(ModelError, match="no stages to unfreeze"):
        encoder.unfreeze(1)


# --- descriptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [resnet18(), load_encoder("small")], ids=["resnet", "small"])
def test_a_description_and_the_weights_rebuild_the_encoder(encoder: Encoder) -> None:
    description = json.loads(json.dumps(encoder.describe()))
    rebuilt = encoder_from_description(description, frozen=True)
    assert rebuilt.weights_hash != encoder.weights_hash
    rebuilt.load_state_dict(encoder.state_dict())
    assert rebuilt.describe() == encoder.describe()
    images = torch.randn(1, 3, *encoder.preparation.size)
    assert torch.equal(rebuilt(images), encoder.eval()(images))


def test_a_description_of_an_unknown_architecture_is_refused() -> None:
    description = {**resnet18().describe(), "architecture": "cnn"}
    with pytest.raises(ModelError, match="architecture 'cnn'; this version knows small, resnet18"):
        encoder_from_description(description, frozen=True)


def test_the_hash_sees_every_weight_and_the_architecture() -> None:
    encoder = resnet18()
    reference = encoder.weights_hash
    with torch.no_grad():
        encoder.backbone.layer4[1].bn2.running_var[-1] += 1e-3
    assert encoder.weights_hash != reference
    with torch.no_grad():
        encoder.backbone.layer4[1].bn2.num_batches_tracked += 1
    changed = encoder.weights_hash
    assert resnet18().weights_hash == reference != changed


def test_images_too_small_are_refused() -> None:
    with pytest.raises(ModelError, match="image size of 16 pixels is too small"):
        load_encoder("small", image_size=16)


def test_the_small_encoder_sees_112_pixels_unless_asked() -> None:
    assert load_encoder("small").grid == (14, 14)
    assert load_encoder("small", image_size=224).grid == (28, 28)


# --- speed ------------------------------------------------------------------------------------


def test_the_fast_form_in_float32_differs_by_rounding_only() -> None:
    encoder = resnet18()
    before = state_of(encoder)
    fast = encoder.fast("float32")
    torch.testing.assert_close(fast(photos()), encoder(photos()), rtol=1e-4, atol=1e-4)
    assert_same_state(before, encoder.state_dict())


def test_the_fast_form_of_the_small_encoder() -> None:
    encoder = Encoder(
        id="small",
        backbone=SmallEncoder(width=16),
        preparation=Preparation(size=(64, 96)),
        frozen=False,
    )
    torch.testing.assert_close(encoder.fast("float32")(photos()), encoder.eval()(photos()))


def test_bf16_is_used_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, expected in [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert resnet18().fast_precision() == expected


def test_the_precision_that_was_asked_for_is_kept_with_the_encoder() -> None:
    asked = Encoder(
        id="r",
        backbone=ResNet(depth=18),
        preparation=Preparation(size=(64, 96)),
        frozen=True,
        precision="float32",
    )
    assert asked.fast_precision() == "float32"
    again = encoder_from_description(asked.describe(), frozen=True)
    assert again.fast_precision() == "float32"


def test_real_weights_see_the_same_in_bf16() -> None:
    weights, folder = SHARED / "models" / "resnet50-imagenet", SHARED / "data" / "flickr8k"
    if not weights.is_dir() or not folder.is_dir():
        pytest.skip(f"no trained weights or photos in {SHARED}")
    encoder = load_encoder(str(weights))
    assert encoder.architecture == "resnet50"
    assert (encoder.width, encoder.grid, encoder.frozen) == (2048, (7, 7), True)
    files = sorted((folder / "Images").glob("*.jpg"))[:4]
    assert len(files) == 4
    images = torch.from_numpy(np.stack([encoder.preparation(open_photo(f)) for f in files]))
    reference = encoder(images)
    # Measured 0.03, of which 0.02 from rounding the weights alone; photos differ by about 1.
    assert (encoder.fast("bf16")(images) - reference).norm() / reference.norm() < 0.05
    assert (encoder.fast("float32")(images) - reference).norm() / reference.norm() < 1e-5
    assert (reference[0] - reference[1]).norm() / reference[0].norm() > 0.5
