"""The recurrence on a GPU: its kernels, interpreted here, and the whole where there is one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regard.models import captured, reading
from regard.models.lstm import LstmDecoder
from regard.training.learner import Learner

V, D, PAD = 37, 10, 0

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA GPU here.")


def small(*, gate: bool) -> LstmDecoder:
    """Odd widths, so that a block that is not whole shows; biases away from zero."""
    torch.manual_seed(1)
    decoder = LstmDecoder(
        vocabulary_size=V, feature_width=D, embedding_width=5, hidden_width=19, attention_width=35,
        gate=gate,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return decoder


def gradients(decoder: LstmDecoder, *, autocast: bool = False) -> dict[str, torch.Tensor]:
    """Of a loss that all of the reading has a part in, the gaze too; as float64 on the CPU."""
    device = decoder.embedding.weight.device
    generator = torch.Generator().manual_seed(2)
    regions = torch.rand(2, 9, D, generator=generator).to(device).requires_grad_()
    captions = torch.randint(4, V, (2, 3, 6), generator=generator)
    captions[0, 1, 3:] = captions[1, 2, 2:] = PAD
    learner = Learner(
        encoder=None,
        decoder=decoder,
        pad=PAD,
        end=2,
        label_smoothing=0.1,
        attention_penalty=1.0,
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        total, nll = learner(regions, captions.to(device))
    total.backward()
    found = {name: p.grad for name, p in decoder.named_parameters()}
    found |= {"regions": regions.grad, "total": total.detach(), "nll": nll.detach()}
    return {name: value.double().cpu() for name, value in found.items()}


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of a tensor."""
    return max(
        float((found[name] - wanted).norm() / wanted.norm()) for name, wanted in expected.items()
    )


INTERPRETED = """
import os, sys
os.environ |= {"TRITON_INTERPRET": "1", "REGARD_COMPILER": ""}  # read when the kernels are defined
sys.path.insert(0, sys.argv[1])
from regard.models import recurrence
from test_gpu import furthest, gradients, small
for gate in (False, True):
    expected = gradients(small(gate=gate))
    used, torch_alone = [], recurrence.gpu_kernels
    recurrence.gpu_kernels = lambda _: used.append(1) or recurrence._triton()
    print(len(used), furthest(gradients(small(gate=gate)), expected), len(used))
    recurrence.gpu_kernels = torch_alone
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="The kernels themselves are tested here.")
def test_kernels_are_the_formulas():
    """By Triton's interpreter: forward, backward, strided rows, widths that are no whole block.

    In a process of its own, because Triton decides when it is imported whether it interprets.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed.")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, Path(__file__).parent],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        before, difference, used = line.split()
        assert (int(before), int(used) > 0) == (0, True)
        assert float(difference) < 1e-5
    assert len(done.stdout.splitlines()) == 2


class Replayed:
    """What stands for a CUDA graph where there is none."""

    def __init__(self, run, _pool):
        self.replay = run


@pytest.fixture(params=["replayed", "cuda"])
def recorded(request, monkeypatch) -> str:
    """A device whose loops are recorded; the bookkeeping is the same without a GPU."""
    captured._FREE.clear()
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("There is no CUDA GPU here.")
        return "cuda"
    monkeypatch.setattr(reading, "_launches", lambda _: True)
    monkeypatch.setattr(captured, "_captured", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return "cpu"


def read_and_back(decoder: LstmDecoder, words: int, seed: int):
    """The hidden states of a reading, and what goes back from them to regions and weights."""
    device = decoder.embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    regions = torch.rand(2, 9, D, generator=generator).to(device).requires_grad_()
    captions = torch.randint(4, V, (2, 3, words), generator=generator).to(device)
    read = decoder.read(regions, captions)

    def back() -> dict[str, torch.Tensor]:
        weights = list(decoder.parameters())[:-2]  # not those of the scores
        loss = read.hidden.square().sum() + read.attention.square().sum()
        found = torch.autograd.grad(loss, [regions, *weights], allow_unused=True)
        return {str(i): d.double().cpu() for i, d in enumerate(found) if d is not None}

    return read, back


@pytest.mark.parametrize("gate", [False, True])
def test_a_recorded_loop_is_the_loop_whatever_was_read_before(gate, recorded):
    """More words, fewer, more than there is room for, and the same again."""
    decoder, expecting = small(gate=gate).to(recorded), small(gate=gate)
    for seed, words in enumerate([6, 3, 6, 17, 1, 8, 6]):
        read, back = read_and_back(decoder, words, seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "_launches", lambda _: False)
            expected, expected_back = read_and_back(expecting, words, seed)
            assert torch.allclose(read.hidden.cpu(), expected.hidden, atol=1e-5)
            assert torch.allclose(read.attention.cpu(), expected.attention, atol=1e-5)
            assert furthest(back(), expected_back()) < 1e-4
    assert {len(free) for free in captured._FREE.values()} == {1}


def test_readings_under_way_together_have_recordings_of_their_own(recorded):
    decoder = small(gate=True).to(recorded)
    alone = [read_and_back(decoder, 5, seed)[1]() for seed in (1, 2)]

    together = [read_and_back(decoder, 5, seed)[1] for seed in (1, 2)]
    with torch.no_grad():
        read_and_back(decoder, 5, 3)

    for back, expected in zip(together, alone, strict=True):
        assert furthest(back(), expected) < 1e-6


def test_the_way_back_through_a_recording_is_gone_once(recorded):
    read, _ = read_and_back(small(gate=True).to(recorded), 5, 1)
    read.hidden.sum().backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="once only"):
        read.hidden.sum().backward()


def test_few_kinds_of_recordings_are_kept(recorded):
    for width in range(3, 4 + captured.MOST):
        decoder = LstmDecoder(
            vocabulary_size=V, feature_width=D, hidden_width=width, embedding_width=3
        )
        read_and_back(decoder.to(recorded), 2, 0)[1]()

    assert len(captured._FREE) == captured.MOST


@ON_A_GPU
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("autocast", "most"), [(False, 1e-4), (True, 0.05)])
def test_a_gpu_finds_the_gradients_of_the_cpu(gate, autocast, most):
    expected = gradients(small(gate=gate))

    found = gradients(small(gate=gate).cuda(), autocast=autocast)

    assert furthest(found, expected) < most


@ON_A_GPU
def test_a_gpu_repeats_itself():
    first, again = (gradients(small(gate=True).cuda(), autocast=True) for _ in range(2))

    assert all(torch.equal(first[name], again[name]) for name in first)


@ON_A_GPU
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_steps_on_a_gpu_are_those_of_the_cpu(precision):
    decoder = small(gate=True).eval()
    regions = torch.rand(3, 9, D)
    tokens = torch.randint(4, V, (4, 3))
    ways = {}
    for device in ("cpu", "cuda"):
        fast = decoder.to(device).fast("float32" if device == "cpu" else precision)
        state = fast.start(regions.to(device))
        scores = []
        for words in tokens.to(device):
            logits, attention, state = fast.step(words, state)
            scores += [logits.cpu(), attention.cpu()]
        ways[device] = torch.cat([s.flatten() for s in scores])

    difference = (ways["cuda"] - ways["cpu"]).norm() / ways["cpu"].norm()

    assert difference < (1e-4 if precision == "float32" else 0.02)
