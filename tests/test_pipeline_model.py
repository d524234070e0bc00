from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from torch.func import functional_call

import pipeline.loss
from pipeline.config import ModelConfig
from pipeline.eager import to_batch
from pipeline.histories import Histories
from pipeline.model import Batch, Draws, MacridVAE

N_ITEMS = 8
HISTORIES = Histories.of([(), (3,), range(N_ITEMS), (0, 2, 5), (1, 6)])
CPU = torch.device("cpu")


def small(**fields: object) -> ModelConfig:
    return ModelConfig(**{"n_concepts": 3, "embedding_size": 4, "encoder_hidden_sizes": [5], **fields})


def with_weights(config: ModelConfig, weights: reference.Weights) -> MacridVAE:
    model = MacridVAE(len(weights["item_embedding"]), config).double()
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    return model


def noise_of(draws: Draws, batch: Batch, n_items: int) -> reference.Noise:
    """What the model drew for the entries of histories, as dense arrays."""
    kept_CBI = np.zeros((draws.kept_NC.shape[1], len(batch.offsets) - 1, n_items))
    kept_CBI[:, batch.users_N.numpy(), batch.items_N.numpy()] = draws.kept_NC.double().T.numpy()
    gumbel_IC = None if draws.gumbel_IC is None else draws.gumbel_IC.double().numpy()
    return reference.Noise(gumbel_IC, kept_CBI, draws.normal_CBD.double().numpy())


def numeric_gradient(f: Callable[[reference.Weights], float], weights: reference.Weights) -> dict[str, np.ndarray]:
    """Central differences of f in every single weight."""
    step, gradients = 1e-6, {}
    for name, weight in weights.items():
        gradients[name] = np.empty_like(weight)
        for at in np.ndindex(weight.shape):
            sides = []
            for sign in (1, -1):
                moved = weight.copy()
                moved[at] += sign * step
                sides.append(f({**weights, name: moved}))
            gradients[name][at] = (sides[0] - sides[1]) / (2 * step)
    return gradients


every_form = pytest.mark.parametrize(
    "config",
    [
        small(history_norm=norm, gumbel=gumbel, encoder_hidden_sizes=sizes)
        for norm, gumbel, sizes in itertools.product(
            ("per-concept", "history"), (True, False), ([5], [6, 5], [6, 5, 3])
        )
    ],
    ids=lambda config: f"{config.history_norm}-{config.gumbel}-{len(config.encoder_hidden_sizes)}",
)


@every_form
def test_loss_equals_the_reference(config: ModelConfig) -> None:
    weights, batch = reference.random_weights(config, N_ITEMS), to_batch(HISTORIES, CPU)
    model = with_weights(config, weights)
    for seed in range(3):
        draws = model.draw(batch, torch.Generator().manual_seed(seed))
        found = model(batch, draws)
        x_BI = reference.dense(HISTORIES, N_ITEMS)
        reconstruction, kl = reference.loss(weights, config, x_BI, noise_of(draws, batch, N_ITEMS))
        assert found.reconstruction.item() == pytest.approx(reconstruction, rel=1e-9)
        assert found.kl.item() == pytest.approx(kl, rel=1e-9)


@every_form
def test_gradients_equal_finite_differences_of_the_reference(config: ModelConfig) -> None:
    weights, batch = reference.random_weights(config, N_ITEMS, seed=1), to_batch(HISTORIES, CPU)
    model = with_weights(config, weights)
    draws = model.draw(batch, torch.Generator().manual_seed(1))
    noise, x_BI = noise_of(draws, batch, N_ITEMS), reference.dense(HISTORIES, N_ITEMS)

    def objective(weights: reference.Weights) -> float:
        reconstruction, kl = reference.loss(weights, config, x_BI, noise)
        return reconstruction + 0.7 * kl

    terms = model(batch, draws)
    (terms.reconstruction + 0.7 * terms.kl).backward()
    expected = numeric_gradient(objective, weights)
    assert {name for name, _ in model.named_parameters()} == set(expected)
    for name, parameter in model.named_parameters():
        assert np.abs(expected[name]).max() > 1e-3, f"{name} has no influence: the comparison would be empty"
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("width", [1, 3, N_ITEMS])
@pytest.mark.parametrize("norm", ["per-concept", "history"])
def test_gradcheck_of_the_whole_model(norm: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(history_norm=norm, encoder_hidden_sizes=[3, 2], embedding_size=2, n_concepts=2)
    monkeypatch.setitem(pipeline.loss.TILE_ELEMENTS, "cpu", width * config.n_concepts * len(HISTORIES))
    model = with_weights(config, reference.random_weights(config, N_ITEMS, seed=2))
    batch = to_batch(HISTORIES, CPU)
    draws = model.draw(batch, torch.Generator().manual_seed(2))
    names = [name for name, _ in model.named_parameters()]

    def terms(*parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(functional_call(model, dict(zip(names, parameters, strict=True)), (batch, draws)))

    assert torch.autograd.gradcheck(terms, tuple(model.parameters()))


def test_a_concept_absent_from_a_history_is_not_blown_up() -> None:
    """Its squared shares sum to less than 1e-12; the authors' l2_normalize then divides by 1e-6, not by their root."""
    config = small(n_concepts=2, temperature=0.05, gumbel=False, dropout=0.0)
    weights = reference.random_weights(config, N_ITEMS)
    weights["prototypes"][:] = [[1, 0, 0, 0], [-1, 0, 0, 0]]
    weights["item_embedding"][:4] = [[1, 0.1, 0, 0], [1, 0, 0.1, 0], [1, 0, 0, 0.1], [1, 0.1, 0.1, 0]]
    histories = Histories.of([(0, 1, 2, 3), (0,)])
    batch, model = to_batch(histories, CPU), with_weights(config, weights)
    assert (reference.assignment(weights, config)[:4, 1] ** 2).sum() < 1e-12
    draws = model.draw(batch, torch.Generator().manual_seed(0))
    noise, x_BI = noise_of(draws, batch, N_ITEMS), reference.dense(histories, N_ITEMS)
    terms = model(batch, draws)
    assert [term.item() for term in terms] == pytest.approx(reference.loss(weights, config, x_BI, noise), rel=1e-9)
    mu_CBD, _ = reference.encode(weights, config, x_BI, reference.assignment(weights, config))
    np.testing.assert_allclose(model.encode(batch, model.assignment()).detach(), mu_CBD, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["per-concept", "history"])
def test_inference_equals_the_reference(norm: str) -> None:
    config = small(history_norm=norm, encoder_hidden_sizes=[6, 5])
    weights = reference.random_weights(config, N_ITEMS)
    model, share_IC = with_weights(config, weights), reference.assignment(weights, config)
    np.testing.assert_allclose(model.assignment().detach(), share_IC, rtol=1e-12)
    mu_CBD, _ = reference.encode(weights, config, reference.dense(HISTORIES, N_ITEMS), share_IC)
    found_CBD = model.encode(to_batch(HISTORIES, CPU), model.assignment()).detach()
    np.testing.assert_allclose(found_CBD, mu_CBD, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["per-concept", "history"])
def test_float32_is_close_to_float64(norm: str) -> None:
    config = ModelConfig(n_concepts=5, embedding_size=16, encoder_hidden_sizes=[24, 16], history_norm=norm)
    n_items, rng = 300, np.random.default_rng(0)
    histories = Histories.of([np.sort(rng.choice(n_items, size, replace=False)) for size in (0, 1, 5, 40, 200)])
    batch = to_batch(histories, CPU)
    exact = with_weights(config, reference.random_weights(config, n_items))
    single = MacridVAE(n_items, config)
    single.load_state_dict(exact.state_dict())
    draws = single.draw(batch, torch.Generator().manual_seed(0))
    gumbel_IC, kept_NC, normal_CBD = draws
    found, expected = (
        single(batch, draws),
        exact(batch, Draws(gumbel_IC.double(), kept_NC.double(), normal_CBD.double())),
    )
    for found_term, expected_term in zip(found, expected, strict=True):
        assert found_term.item() == pytest.approx(expected_term.item(), rel=1e-5)
    sum(found).backward()
    sum(expected).backward()
    for (name, found_w), expected_w in zip(single.named_parameters(), exact.parameters(), strict=True):
        error = (found_w.grad - expected_w.grad).norm() / expected_w.grad.norm()
        assert error < 1e-5, name


@pytest.mark.parametrize("norm", ["per-concept", "history"])
def test_lowest_temperature_stays_finite(norm: str) -> None:
    """The model's vectors lie as far apart as they can: items opposite to every prototype and to each other."""
    config = small(temperature=0.025, history_norm=norm)
    model = MacridVAE(N_ITEMS, config)
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.prototypes.copy_(torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4))
        model.item_embedding.copy_(torch.tensor([[1.0, 0, 0, 0]]) * torch.tensor([-1, 1] * 4)[:, None])
        model.encoder.output.weight.zero_()
        model.encoder.output.bias.copy_(torch.tensor([1.0, 0, 0, 0, 9, 9, 9, 9]))
    batch = to_batch(HISTORIES, CPU)
    for seed in range(20):
        model.zero_grad()
        terms = model(batch, model.draw(batch, torch.Generator().manual_seed(seed)))
        (terms.reconstruction + terms.kl).backward()
        assert torch.isfinite(terms.reconstruction)
        assert terms.reconstruction > 80  # item 0 is opposite to z: its probability is about exp(-2 / 0.025)
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_only_empty_histories_cost_nothing_to_reconstruct() -> None:
    config = small()
    weights = reference.random_weights(config, N_ITEMS)
    model, histories = with_weights(config, weights), Histories.of([(), ()])
    batch = to_batch(histories, CPU)
    draws = model.draw(batch, torch.Generator().manual_seed(0))
    terms = model(batch, draws)
    (terms.reconstruction + terms.kl).backward()
    assert terms.reconstruction.item() == 0
    x_BI, noise = reference.dense(histories, N_ITEMS), noise_of(draws, batch, N_ITEMS)
    assert terms.kl.item() == pytest.approx(reference.loss(weights, config, x_BI, noise)[1], rel=1e-9)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_batch_names_the_user_of_each_entry() -> None:
    assert to_batch(HISTORIES, CPU).users_N.tolist() == [1] + [2] * N_ITEMS + [3] * 3 + [4] * 2


def test_state_dict_has_the_names_and_shapes_of_the_weights_file() -> None:
    config = ModelConfig(n_concepts=10, embedding_size=64, encoder_hidden_sizes=[600, 300])
    shapes = {name: list(weight.shape) for name, weight in MacridVAE(50, config).state_dict().items()}
    assert shapes == {
        "item_embedding": [50, 64],
        "prototypes": [10, 64],
        "encoder.input.weight": [50, 600],
        "encoder.input.bias": [600],
        "encoder.hidden.0.weight": [300, 600],
        "encoder.hidden.0.bias": [300],
        "encoder.output.weight": [128, 300],
        "encoder.output.bias": [128],
    }


def test_first_weights_are_glorot_uniform_with_small_biases() -> None:
    model = MacridVAE(2000, ModelConfig(encoder_hidden_sizes=[300, 200]))
    model.initialise(torch.Generator().manual_seed(3))
    for name, weight in model.state_dict().items():
        if weight.dim() == 2:
            bound = math.sqrt(6 / sum(weight.shape))
            assert weight.abs().max() <= bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        else:
            assert weight.abs().max() <= 0.002, name
            assert weight.std().item() == pytest.approx(0.00088, rel=0.15), name  # a normal cut at two deviations
    again = MacridVAE(2000, model.config)
    again.initialise(torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_draws_follow_their_distributions() -> None:
    config = ModelConfig(dropout=0.3)
    model = MacridVAE(5000, config)
    batch = to_batch(Histories.of([range(0, 5000, 2), range(0, 5000, 3)]), CPU)
    gumbel_IC, kept_NC, normal_CBD = model.draw(batch, torch.Generator().manual_seed(0))
    assert gumbel_IC.shape == (5000, 7)
    assert gumbel_IC.mean().item() == pytest.approx(np.euler_gamma, abs=0.03)
    assert gumbel_IC.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.03)
    assert kept_NC.shape == (2500 + 1667, 7)
    assert kept_NC.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (kept_NC == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert normal_CBD.shape == (7, 2, 200)
    assert normal_CBD.mean().item() == pytest.approx(0, abs=0.1)
    assert normal_CBD.std().item() == pytest.approx(1, abs=0.1)


def test_concepts_share_a_dropout_mask_only_when_the_history_is_normalised_once() -> None:
    batch = to_batch(Histories.of([range(200)]), CPU)
    for norm, shared in (("per-concept", False), ("history", True)):
        model = MacridVAE(200, small(history_norm=norm))
        kept_NC = model.draw(batch, torch.Generator().manual_seed(0)).kept_NC
        assert torch.equal(kept_NC[:, 0], kept_NC[:, 1]) is shared


def test_draws_come_from_the_generator_alone() -> None:
    model, batch = MacridVAE(N_ITEMS, small()), to_batch(HISTORIES, CPU)
    before = torch.random.get_rng_state()
    one, same, other = (model.draw(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_gumbel_no_gumbel_noise_is_drawn() -> None:
    model = MacridVAE(N_ITEMS, small(gumbel=False))
    assert model.draw(to_batch(HISTORIES, CPU), torch.Generator()).gumbel_IC is None


PEAK_OF_ONE_STEP = """
import pipeline.loss
import torch
from pipeline.config import ModelConfig
from pipeline.eager import to_batch
from pipeline.histories import Histories
from pipeline.model import MacridVAE

def kilobytes(field):
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(field)).split()[1])

def step(model):
    batch = to_batch(Histories.of([range(u, model.n_items, 5000) for u in range({n_users})]), torch.device("cpu"))
    terms = model(batch, model.draw(batch, torch.Generator().manual_seed(0)))
    (terms.reconstruction + terms.kl).backward()

torch.set_num_threads(1)
pipeline.loss.KEPT_ELEMENTS["cpu"] = 2**22  # what is kept by choice is not the matter here
config = ModelConfig(n_concepts=7, embedding_size=16, encoder_hidden_sizes=[16])
small, large = MacridVAE(5000, config), MacridVAE({n_items}, config)
for model in (small, large):
    model.initialise(torch.Generator().manual_seed(0))
step(small)  # what the libraries take for themselves
before = kilobytes("VmRSS")
step(large)
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_step_never_holds_batch_times_catalogue_times_concepts() -> None:
    n_items, n_users = 200_000, 64
    program = PEAK_OF_ONE_STEP.format(n_items=n_items, n_users=n_users)
    at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory returns to the system at once
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=at_once)
    dense = n_users * n_items * 7 * 4
    assert int(run.stdout) * 1024 < dense / 3
