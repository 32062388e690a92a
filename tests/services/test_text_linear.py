"""Packed linear layers: close to the plain ones, and the same for a row whatever is beside it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import nn

from services.engine.weights import weigh
from services.text.linear import Packing, is_supported, pack, shrink

WIDTH, NEW_WIDTH = 96, 50
TOLERANCES: dict[Packing, float] = {"float16": 0.001, "int8": 0.03, "int4": 0.15}  # of the results' standard deviation

pytestmark = pytest.mark.skipif(
    not is_supported(torch.device("cpu")), reason="this processor has no packed layers; models run in plain ones"
)


@pytest.fixture(params=TOLERANCES)
def packing(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def plain() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, NEW_WIDTH)


def test_packed_weights_are_weighed(packing: Packing) -> None:
    layers = nn.Sequential(nn.Linear(512, 1024, bias=False), nn.Linear(1024, 512, bias=False))
    unpacked = weigh(layers)
    pack(layers, packing)
    share = {"float16": 1 / 2, "int8": 1 / 4}[packing]

    assert share * unpacked <= weigh(layers) < 1.05 * share * unpacked


def packed(layer: nn.Module, packing: Packing) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pack the layer inside of a model, as it is done to one that is served."""
    model = nn.Sequential(layer)
    pack(model, packing)
    return torch.inference_mode()(lambda rows: model(rows.clone()))


def rows(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_results_are_close(plain: nn.Linear, packing: Packing) -> None:
    expected = plain(rows(40)).detach()
    found = packed(plain, packing)(rows(40))
    assert (found - expected).std() / expected.std() < TOLERANCES[packing]


def test_a_layer_without_bias(packing: Packing) -> None:
    plain = nn.Linear(WIDTH, NEW_WIDTH, bias=False)
    expected = plain(rows(5)).detach()
    assert (packed(plain, packing)(rows(5)) - expected).std() / expected.std() < TOLERANCES[packing]


def test_axes_are_kept(plain: nn.Linear, packing: Packing) -> None:
    assert packed(plain, packing)(rows(6).reshape(1, 2, 3, WIDTH)).shape == (1, 2, 3, NEW_WIDTH)


@pytest.mark.parametrize(("packing", "most_bits"), [("float16", 16.5), ("int8", 9), ("int4", 6)])
def test_a_layer_says_what_it_takes(packing: Packing, most_bits: float) -> None:
    model: Any = nn.Sequential(nn.Linear(256, 512, bias=False))
    pack(model, packing)

    assert most_bits - 1.5 < 8 * weigh(model[0]) / (256 * 512) < most_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packing", ["int8", "int4"])
def test_layers_for_any_device_are_the_same_but_for_rounding(
    plain: nn.Linear, packing: Packing, dtype: torch.dtype
) -> None:
    expected = plain(rows(40)).detach()
    model: Any = nn.Sequential(plain.to(dtype))
    shrink(model, packing)
    with torch.inference_mode():
        found = model(rows(40).to(dtype))

    assert found.dtype == dtype
    assert (found.float() - expected).std() / expected.std() < TOLERANCES[packing]
    assert weigh(model[0]) < 12 / 8 * WIDTH * NEW_WIDTH


def test_a_layer_of_few_bits_keeps_small_weights_and_those_that_are_all_the_same() -> None:
    layer = nn.Linear(64, 16, bias=False)
    with torch.no_grad():
        layer.weight[:8] *= 1e-6
        layer.weight[8:] = 0.25
        layer.weight[9] = 0
    some = torch.ones(3, 64)
    expected = layer(some).detach()
    for change in (pack, shrink):
        model = nn.Sequential(layer)
        change(model, "int4")
        with torch.inference_mode():
            assert torch.allclose(model(some), expected, rtol=0.05, atol=1e-7)


@given(number=st.integers(1, 200), place=st.integers(0, 199), seed=st.integers(0, 9))
@examples(deadline=None, max_examples=60)
@pytest.mark.parametrize("packing", TOLERANCES)
def test_a_row_comes_out_the_same_whatever_is_beside_it(packing: Packing, number: int, place: int, seed: int) -> None:
    torch.manual_seed(0)
    layer = packed(nn.Linear(WIDTH, NEW_WIDTH), packing)
    some = rows(number, seed) * torch.logspace(-3, 3, number)[:, None]  # of very different sizes
    alone = some[place % number : place % number + 1]
    assert torch.equal(layer(some)[place % number], layer(alone)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_overflow_stay_with_their_row_and_show(plain: nn.Linear, packing: Packing, bad: float) -> None:
    layer = packed(plain, packing)
    some = rows(5)
    expected = layer(some)
    some[2, 7] = bad
    found = layer(some)
    assert not found[2].isfinite().any()
    assert torch.equal(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


def test_a_row_of_zeros_is_the_bias(plain: nn.Linear, packing: Packing) -> None:
    assert torch.allclose(packed(plain, packing)(torch.zeros(1, WIDTH))[0], plain.bias, atol=1e-6)


def test_layers_that_read_the_same_rows_and_layers_that_do_not(packing: Packing) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
    first, second = (layer(rows(4)).detach() for layer in model)
    after = model[1](first).detach()
    pack(model, packing)
    shared = rows(4)
    with torch.inference_mode():
        found = (model[0](shared), model[1](shared), model[1](first.clone()))
    for one, expected in zip(found, (first, second, after), strict=True):
        assert (one - expected).std() / expected.std() < TOLERANCES[packing]


def test_what_is_not_a_linear_layer_becomes_float32() -> None:
    model = nn.Sequential(nn.Embedding(5, WIDTH), nn.Linear(WIDTH, NEW_WIDTH)).bfloat16()
    pack(model, "float16")
    assert model(torch.tensor([1])).dtype == torch.float32


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e5])
def test_weights_that_would_change_stay_as_they_are(plain: nn.Linear, packing: Packing, weight: float) -> None:
    with torch.no_grad():
        plain.weight[3, 4] = weight
    expected = plain(rows(6))
    assert torch.allclose(packed(plain, packing)(rows(6)), expected, equal_nan=True)
