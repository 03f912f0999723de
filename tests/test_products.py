"""oneDNN's linear maps are those of torch, and a learner that computes with them is the same learner."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conclip.config import machine
from conclip.models.products import OneDnnLinear, onednn_pays, use_onednn
from conclip.training import backend
from conclip.training.experience import make_experience
from tests.conftest import gradient_of
from tests.test_learner import batch, config, make_learner

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN: nothing to compare"
)


def linear(*, bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 70, bias=bias)


def results(module: nn.Module, input: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of all that trains."""
    input = input.clone().requires_grad_()
    output = module(input)
    (output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    gradients = [tensor.grad for tensor in (input, *module.parameters()) if tensor.requires_grad]
    return [output.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (37, 96), (3, 41, 96)])
def test_output_and_gradients_are_those_of_exact_arithmetic(shape: tuple[int, ...], bias: bool):
    plain, input = linear(bias=bias), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = results(copy.deepcopy(plain).double(), input.double())
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    assert type(fast) is OneDnnLinear
    for found, right in zip(results(fast, input), exact, strict=True):
        assert found.shape == right.shape
        assert found.is_contiguous()
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5 * float(right.abs().max()))


def test_a_frozen_weight_passes_the_gradient_on_and_gets_none():
    fast = linear(bias=True).requires_grad_(False)
    use_onednn(fast)
    output, gradient = results(fast, torch.randn(5, 96))
    assert gradient.shape == (5, 96) and bool(gradient.any()) and output.shape == (5, 70)
    assert fast.weight.grad is None and fast.bias.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_to_torch(dtype: torch.dtype):
    plain, input = linear(bias=True).to(dtype), torch.randn(5, 96).to(dtype)
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    for found, right in zip(results(fast, input), results(plain, input), strict=True):
        assert torch.equal(found, right)


def test_subclasses_keep_their_own_arithmetic():
    class Other(nn.Linear):
        pass

    module = nn.Sequential(Other(4, 4), nn.Linear(4, 4))
    use_onednn(module)
    assert [type(part) for part in module] == [Other, OneDnnLinear]
    assert set(module.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("text", "pays"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd\n", False),
    ],
)
def test_only_processors_whose_avx512_torch_leaves_unused(
    text: str, pays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert onednn_pays() is pays


def test_a_learner_computes_the_same_with_either(random_model: Path, monkeypatch: pytest.MonkeyPatch):
    found = list[tuple[Tensor, Tensor, Tensor]]()
    for pays in (True, False):
        monkeypatch.setattr(backend, "onednn_pays", lambda pays=pays: pays)
        learner, tokens = make_learner(random_model, config()), batch()
        models = learner.backend.models
        for model in (models.policy, models.reference, models.critic):
            assert model is not None
            assert any(isinstance(part, OneDnnLinear) for part in model.modules()) is pays
        scores = learner.score(tokens)
        assert scores.old_logprobs is not None and scores.old_values is not None
        experience = make_experience(tokens, scores, config().algo, kl_coef=0.1)
        found.append((scores.old_logprobs, scores.old_values, gradient_of(learner, experience, kl_coef=0.1)[0]))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)
