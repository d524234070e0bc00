from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import pipeline.baselines
import pipeline.fitting
import pipeline.train
from pipeline.checkpoint import read_checkpoint
from pipeline.config import Config, DataConfig, ModelConfig, TrainingConfig
from pipeline.dataset import Dataset, load_dataset
from pipeline.eager import EagerScorer, to_batch
from pipeline.errors import InputError, JobError
from pipeline.fitting import Epoch, Fitting, kl_weight, learning_rate
from pipeline.histories import Histories
from pipeline.model import MacridVAE
from pipeline.penalties import concept_information, l2_penalty
from pipeline.split import HeldOut
from pipeline.train import train, training_device

N_BLOCKS, BLOCK = 4, 6
N_ITEMS = N_BLOCKS * BLOCK
NOBODY = HeldOut(Histories.of([]), Histories.of([]))


def block_users() -> tuple[Histories, np.ndarray]:
    """User j of a block has all its items but the j-th: the histories, and the item withheld from each user."""
    withheld = np.arange(N_ITEMS)
    histories = [[item for item in range(N_ITEMS) if item // BLOCK == own // BLOCK and item != own] for own in withheld]
    return Histories.of(histories), withheld


USERS, WITHHELD = block_users()
VALIDATION = HeldOut(USERS, Histories.of(WITHHELD[:, None].tolist()))


def config(**training: object) -> Config:
    fields = {
        "epochs": 3,
        "train_batch_size": 7,
        "learning_rate": 0.01,
        "kl_anneal_steps": 100,
        "averaged_epochs": 0.0,
        **training,
    }
    return Config(
        model=ModelConfig(n_concepts=N_BLOCKS, embedding_size=8, encoder_hidden_sizes=[16]),
        training=TrainingConfig(**fields),
    )


def fitted(config: Config, validation: HeldOut = NOBODY) -> tuple[MacridVAE, list[Epoch], list[dict[str, Tensor]]]:
    """The fitted model, its epochs, and a copy of the weights as they were after each."""
    model, epochs, weights = MacridVAE(N_ITEMS, config.model), [], []
    for epoch in Fitting(model, USERS, validation, config).epochs():
        epochs.append(epoch)
        weights.append({name: weight.clone() for name, weight in model.state_dict().items()})
    return model, epochs, weights


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def untimed(epochs: list[Epoch]) -> list[Epoch]:
    return [replace(epoch, seconds=0, users_per_second=0) for epoch in epochs]


@pytest.fixture
def scripted_ndcg(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation results to come, epoch by epoch, in place of measured ones."""
    results: list[float] = []
    upcoming: Iterator[float] = iter(results)
    monkeypatch.setattr(pipeline.fitting, "mean_ndcg", lambda *_: next(upcoming))
    return results


def test_blocks_are_found_and_the_withheld_item_comes_first() -> None:
    model, epochs, _ = fitted(config(epochs=40, learning_rate=0.03), VALIDATION)
    first, last = epochs[0], epochs[-1]
    assert last.reconstruction < 0.75 * first.reconstruction
    assert last.loss < 0.75 * first.loss
    top = EagerScorer(model)(USERS, 1, excluded=USERS)
    assert (top.items[:, 0] == WITHHELD).all()
    assert max(epoch.validation_ndcg_100 for epoch in epochs) == 1


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    one, one_epochs, _ = fitted(config(), VALIDATION)
    torch.manual_seed(1)  # no matter
    same, same_epochs, _ = fitted(config(), VALIDATION)
    other, other_epochs, _ = fitted(config(seed=1), VALIDATION)
    assert equal(one.state_dict(), same.state_dict())
    assert untimed(one_epochs) == untimed(same_epochs)
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not any(a.loss == b.loss for a, b in zip(one_epochs, other_epochs, strict=True))


def test_fitting_leaves_the_global_generators_alone() -> None:
    settings = config(epochs=1)
    model = MacridVAE(N_ITEMS, settings.model)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    list(Fitting(model, USERS, VALIDATION, settings).epochs())
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_stops_after_stopping_step_epochs_without_a_better_one_and_restores_the_best(
    scripted_ndcg: list[float],
) -> None:
    scripted_ndcg += [0.1, 0.2, 0.4, 0.4, 0.3, 0.2, 0.9]
    model, epochs, weights = fitted(config(epochs=20, stopping_step=3), VALIDATION)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert [epoch.best_epoch for epoch in epochs] == [1, 2, 3, 3, 3, 3]
    assert [epoch.validation_ndcg_100 for epoch in epochs] == [0.1, 0.2, 0.4, 0.4, 0.3, 0.2]
    assert equal(model.state_dict(), weights[2])
    assert not equal(weights[2], weights[5])


def test_a_better_epoch_starts_the_wait_anew(scripted_ndcg: list[float]) -> None:
    scripted_ndcg += [0.3, 0.2, 0.4, 0.1, 0.2]
    model, epochs, weights = fitted(config(epochs=20, stopping_step=2), VALIDATION)
    assert len(epochs) == 5
    assert equal(model.state_dict(), weights[2])


def test_a_validation_of_zero_is_still_a_best_epoch(scripted_ndcg: list[float]) -> None:
    scripted_ndcg += [0.0, 0.0, 0.0]
    model, epochs, weights = fitted(config(epochs=20, stopping_step=2), VALIDATION)
    assert [epoch.best_epoch for epoch in epochs] == [1, 1, 1]
    assert equal(model.state_dict(), weights[0])


def test_without_validation_users_the_last_epoch_is_kept() -> None:
    model, epochs, weights = fitted(config(epochs=4, stopping_step=1))
    assert [epoch.best_epoch for epoch in epochs] == [1, 2, 3, 4]
    assert [epoch.validation_ndcg_100 for epoch in epochs] == [None] * 4
    assert equal(model.state_dict(), weights[3])


@pytest.mark.parametrize(
    ("fields", "step", "expected"),
    [
        ({"kl_anneal_steps": "5-epochs"}, 1, 1 / 50),  # 10 batches an epoch
        ({"kl_anneal_steps": "5-epochs"}, 9, 9 / 50),
        ({"kl_anneal_steps": "5-epochs"}, 10, 0.2),  # the default weight is reached after exactly one epoch
        ({"kl_anneal_steps": "5-epochs"}, 11, 0.2),
        ({"kl_anneal_steps": "5-epochs", "kl_weight": 3.0}, 50, 1.0),
        ({"kl_anneal_steps": 0}, 1, 0.2),
        ({"kl_anneal_steps": 0, "kl_weight": 0.0}, 1, 0.0),
        ({"kl_anneal_steps": 200_000}, 1000, 0.005),
        ({"kl_anneal_steps": 200_000}, 40_000, 0.2),
        ({"kl_anneal_steps": 200_000}, 10**6, 0.2),
    ],
)
def test_kl_weight_grows_to_its_cap(fields: dict[str, object], step: int, expected: float) -> None:
    assert kl_weight(TrainingConfig(**fields), step, n_batches=10) == pytest.approx(expected, rel=1e-12)


def test_epochs_report_the_weight_of_their_last_step() -> None:
    """24 users in batches of at most 7 are 4 steps an epoch."""
    _, epochs, _ = fitted(config(epochs=3, kl_anneal_steps="5-epochs", kl_weight=0.5))
    assert [epoch.kl_weight for epoch in epochs] == pytest.approx([4 / 20, 8 / 20, 0.5])


def test_l2_penalty() -> None:
    model = MacridVAE(2, ModelConfig(n_concepts=1, embedding_size=1, encoder_hidden_sizes=[1, 1]))
    weights = {
        "item_embedding": [[1.0], [2.0]],
        "prototypes": [[3.0]],
        "encoder.input.weight": [[0.5], [1.5]],
        "encoder.input.bias": [100.0],
        "encoder.hidden.0.weight": [[2.0]],
        "encoder.hidden.0.bias": [100.0],
        "encoder.output.weight": [[1.0], [3.0]],
        "encoder.output.bias": [100.0, 100.0],
    }
    model.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    tables, encoder = 1 + 4 + 9, 0.25 + 2.25 + 4 + 1 + 9
    for of_tables, of_encoder in ((0.1, 0.0), (0.0, 0.1), (0.5, 0.25)):
        penalty = l2_penalty(model, TrainingConfig(l2_weights=[of_tables, of_encoder]))
        assert float(torch.as_tensor(penalty).detach()) == pytest.approx(of_tables * tables + of_encoder * encoder)
    assert l2_penalty(model, TrainingConfig()) == 0


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    settings = config(epochs=1, train_batch_size=N_ITEMS, kl_anneal_steps=0, kl_weight=0.3, l2_weights=[0.02, 0.05])
    _, (epoch,), _ = fitted(settings)
    first = MacridVAE(N_ITEMS, settings.model)
    first.initialise(torch.Generator().manual_seed(settings.training.seed))
    l2 = l2_penalty(first, settings.training).item()
    assert l2 > 0.1
    assert epoch.loss == pytest.approx(epoch.reconstruction + 0.3 * epoch.kl + l2, rel=1e-5)


def test_a_spectral_start_turns_items_and_prototypes_and_nothing_else() -> None:
    """Lengths, encoder and all later draws are those of a random start."""
    random, spectral = (MacridVAE(N_ITEMS, config().model) for _ in range(2))
    drawn = Fitting(random, USERS, NOBODY, config())
    turned = Fitting(spectral, USERS, NOBODY, config(initialisation="spectral"))
    assert torch.equal(drawn.generator.get_state(), turned.generator.get_state())
    tables = ("item_embedding", "prototypes")
    for name, weight in spectral.state_dict().items():
        before = random.state_dict()[name]
        assert torch.equal(weight, before) == (name not in tables)
        if name in tables:
            torch.testing.assert_close(weight.norm(dim=1), before.norm(dim=1))
    concept_of_block = spectral.assignment().argmax(dim=1).view(N_BLOCKS, BLOCK)
    assert (concept_of_block == concept_of_block[:, :1]).all()
    assert len(set(concept_of_block[:, 0].tolist())) == N_BLOCKS


def test_a_spectral_start_is_the_average_too() -> None:
    """With no step taken, what is kept is where training starts."""
    fitting = Fitting(
        MacridVAE(N_ITEMS, config().model), USERS, NOBODY, config(initialisation="spectral", averaged_epochs=2.0)
    )
    assert equal(fitting.measured.state_dict(), fitting.model.state_dict())
    assert equal(fitting.best_weights, fitting.model.state_dict())


def test_a_spectral_start_depends_on_the_seed_alone() -> None:
    one, same, other = (fitted(config(initialisation="spectral", seed=seed))[0] for seed in (1, 1, 2))
    assert equal(one.state_dict(), same.state_dict())
    assert not equal(one.state_dict(), other.state_dict())


def test_concept_information() -> None:
    """log C for certain and even assignments, 0 when the item tells nothing; and it can be differentiated there."""
    even = torch.eye(4).repeat(3, 1).requires_grad_()
    assert concept_information(even).item() == pytest.approx(math.log(4))
    assert concept_information(torch.eye(4)[[2, 2, 2]]).item() == pytest.approx(0, abs=1e-6)
    assert concept_information(torch.full((5, 4), 0.25)).item() == pytest.approx(0, abs=1e-6)
    half = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - math.log(2) / 2
    assert concept_information(half).item() == pytest.approx(by_hand)
    concept_information(even).backward()
    assert torch.isfinite(even.grad).all()


def test_the_sharpness_term_is_subtracted_from_the_loss() -> None:
    settings = config(epochs=1, train_batch_size=N_ITEMS, kl_anneal_steps=0, kl_weight=0.3, sharpness_weight=2.5)
    _, (epoch,), _ = fitted(settings)
    first = MacridVAE(N_ITEMS, settings.model)
    first.initialise(torch.Generator().manual_seed(settings.training.seed))
    information = concept_information(first.assignment()).item()
    assert information > 0.01
    assert epoch.loss == pytest.approx(epoch.reconstruction + 0.3 * epoch.kl - 2.5 * information, rel=1e-5)


def test_a_sharpness_weight_makes_concepts_clear() -> None:
    plain, sharp = (fitted(config(epochs=10, sharpness_weight=weight))[0] for weight in (0.0, 20.0))
    clear = [model.assignment().max(dim=1).values.median().item() for model in (plain, sharp)]
    assert clear[1] > clear[0] + 0.1
    assert concept_information(sharp.assignment()) > concept_information(plain.assignment()) + 0.1


def test_l2_shrinks_the_weights() -> None:
    norms = []
    for weights in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
        model, _, _ = fitted(config(epochs=10, l2_weights=weights))
        norms.append([model.item_embedding.square().sum().item(), model.encoder.input.weight.square().sum().item()])
    plain, tables, encoder = norms
    assert tables[0] < 0.8 * plain[0]
    assert encoder[1] < 0.8 * plain[1]


def test_a_step_is_one_of_adam_on_the_batch() -> None:
    settings = config(epochs=1, train_batch_size=N_ITEMS, learning_rate=0.004)
    model, _, _ = fitted(settings)
    generator = torch.Generator().manual_seed(settings.training.seed)
    twin = MacridVAE(N_ITEMS, settings.model)
    twin.initialise(generator)
    order = np.random.default_rng(settings.training.seed).permutation(N_ITEMS)
    batch = to_batch(USERS.take(order), torch.device("cpu"))
    terms = twin(batch, twin.draw(batch, generator))
    (terms.reconstruction + terms.kl / 100).backward()
    for name, weight in twin.named_parameters():
        # Adam's first step is the learning rate times the sign of the gradient, softened by its epsilon.
        expected = weight.detach() - 0.004 * weight.grad / (weight.grad.abs() + 1e-8)
        torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=1e-4, atol=1e-6)


def test_on_step_sees_every_user_once_an_epoch() -> None:
    settings = config(epochs=2)
    steps: list[tuple[int, int, float]] = []
    model = MacridVAE(N_ITEMS, settings.model)
    epochs = list(Fitting(model, USERS, NOBODY, settings).epochs(lambda *step: steps.append(step)))
    assert [step[0] for step in steps] == [1] * 4 + [2] * 4
    assert max(step[1] for step in steps) <= 7
    for epoch in epochs:
        seen = [(n_users, loss) for number, n_users, loss in steps if number == epoch.epoch]
        assert sum(n_users for n_users, _ in seen) == N_ITEMS
        assert epoch.loss == pytest.approx(sum(n_users * loss for n_users, loss in seen) / N_ITEMS)


def test_the_step_size_falls_along_half_a_cosine() -> None:
    cosine = TrainingConfig(learning_rate=0.4, learning_rate_schedule="cosine", epochs=5)
    steps = [learning_rate(cosine, step, n_batches=2) for step in (1, 6, 10)]
    assert steps == pytest.approx([0.4, 0.2, 0.4 * (1 + math.cos(0.9 * math.pi)) / 2])
    assert learning_rate(TrainingConfig(learning_rate=0.4), 6, n_batches=2) == 0.4


def test_the_schedule_reaches_adam() -> None:
    plain, _, _ = fitted(config())
    cosine, _, _ = fitted(config(learning_rate_schedule="cosine"))
    first, _, _ = fitted(config(epochs=1, train_batch_size=N_ITEMS))
    same_first, _, _ = fitted(config(epochs=1, train_batch_size=N_ITEMS, learning_rate_schedule="cosine"))
    assert not equal(plain.state_dict(), cosine.state_dict())
    assert equal(first.state_dict(), same_first.state_dict())


@pytest.mark.parametrize(("averaged_epochs", "kept"), [(0.125, (1 / 9, 1 / 9)), (50.0, (2 / 11, 3 / 12))])
def test_the_average_of_the_weights_is_kept(averaged_epochs: float, kept: tuple[float, float]) -> None:
    """One batch an epoch. The average starts at the first step's weights and keeps a share of itself at later ones."""
    plain = {"train_batch_size": N_ITEMS, "epochs": 3, "learning_rate": 0.05}
    _, _, weights = fitted(config(**plain))
    averaged, _, _ = fitted(config(**plain, averaged_epochs=averaged_epochs))
    for name, weight in averaged.state_dict().items():
        first, second, third = (epoch[name] for epoch in weights)
        after_second = kept[0] * first + (1 - kept[0]) * second
        torch.testing.assert_close(weight, kept[1] * after_second + (1 - kept[1]) * third)


def test_epochs_are_timed() -> None:
    _, (epoch,), _ = fitted(config(epochs=1), VALIDATION)
    assert epoch.seconds > 0
    assert epoch.users_per_second >= N_ITEMS / epoch.seconds


def test_a_loss_that_is_not_finite_ends_the_job() -> None:
    settings = config(learning_rate=1e30)
    with pytest.raises(JobError) as error:
        fitted(settings)
    assert str(error.value) == (
        "The loss of step 2 (epoch 1) is nan. Lower training.learning_rate or raise model.temperature."
    )


@pytest.fixture
def interactions(tmp_path: Path) -> Config:
    """A config of a Parquet file in which everyone has all items of one block."""
    rows = [(f"user-{user}", f"item-{user % N_BLOCKS}-{item}") for user in range(60) for item in range(BLOCK)]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_parquet(tmp_path / "interactions.parquet")
    data = DataConfig(input=str(tmp_path / "interactions.parquet"), validation=8, test=12)
    return config(epochs=4).model_copy(update={"data": data})


def test_a_job_reads_fits_tests_and_publishes(interactions: Config, tmp_path: Path) -> None:
    seen: dict[str, list[object]] = {"data": [], "steps": [], "epochs": []}
    output = tmp_path / "runs" / "checkpoint"
    manifest = train(
        interactions,
        output,
        "cpu",
        on_data=seen["data"].append,
        on_step=lambda *step: seen["steps"].append(step),
        on_epoch=seen["epochs"].append,
    )
    checkpoint = read_checkpoint(output)
    assert checkpoint.manifest == manifest
    assert manifest.config == interactions
    assert len(checkpoint.vocabulary) == N_ITEMS
    assert (len(checkpoint.training), len(checkpoint.validation), len(checkpoint.test)) == (40, 8, 12)
    assert [data.counts for data in seen["data"]] == [manifest.counts]
    assert len(seen["steps"]) == 4 * 6  # 40 users in batches of at most 7
    lines = (output / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(epoch) for epoch in seen["epochs"]]
    assert manifest.best_epoch == seen["epochs"][-1].best_epoch
    top = EagerScorer(checkpoint.model())(checkpoint.test.histories, 1, excluded=checkpoint.test.histories)
    hits = [item in checkpoint.test.targets[user] for user, item in enumerate(top.items[:, 0])]
    measure = manifest.metrics["ndcg@100"]
    assert measure.n_users == 12
    assert measure.mean >= np.mean(hits)  # a hit in first place alone scores 1
    (tmp_path / "again").mkdir()
    assert manifest.data_sha256 == load_dataset(interactions.data, tmp_path / "again").digest()
    assert list(manifest.baselines) == ["ease", "popularity"]
    for baseline in manifest.baselines.values():
        assert baseline.metrics.keys() == manifest.metrics.keys()
        lead = measure.mean - baseline.metrics["ndcg@100"].mean
        assert baseline.advantage.mean == pytest.approx(lead)
    assert sorted(entry.name for entry in output.parent.iterdir()) == ["checkpoint", "checkpoint.metrics.jsonl"]


def test_a_job_twice_gives_the_same_weights_and_metrics(interactions: Config, tmp_path: Path) -> None:
    one, other = (train(interactions, tmp_path / name, "cpu") for name in ("one", "other"))
    assert one.files["weights.safetensors"] == other.files["weights.safetensors"]
    assert one.files["histories.parquet"] == other.files["histories.parquet"]
    assert one.metrics == other.metrics


def test_test_users_reach_neither_training_nor_selection(
    interactions: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nonsense in place of the test users, the same epoch is chosen and the weights have the same bits."""
    honest = train(interactions, tmp_path / "honest", "cpu")

    def without_test(data: DataConfig, folder: Path) -> Dataset:
        nonsense = Histories.of([[0]] * 12), Histories.of([[1]] * 12)
        return replace(load_dataset(data, folder), test=HeldOut(*nonsense))

    monkeypatch.setattr(pipeline.train, "load_dataset", without_test)
    blind = train(interactions, tmp_path / "blind", "cpu")
    assert blind.files["weights.safetensors"] == honest.files["weights.safetensors"]
    assert blind.best_epoch == honest.best_epoch
    assert blind.metrics != honest.metrics


def test_a_job_without_test_users_has_no_metrics(interactions: Config, tmp_path: Path) -> None:
    data = interactions.data.model_copy(update={"test": 0, "validation": 0})
    manifest = train(interactions.model_copy(update={"data": data}), tmp_path / "checkpoint", "cpu")
    assert (manifest.metrics, manifest.baselines) == ({}, {})
    assert manifest.best_epoch == 4


def test_a_large_catalogue_is_compared_with_popularity_only(
    interactions: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.baselines, "CHEAP_EASE_ITEMS", N_ITEMS - 1)
    assert list(train(interactions, tmp_path / "checkpoint", "cpu").baselines) == ["popularity"]


def test_a_failed_job_leaves_the_older_checkpoint_and_the_epochs_it_had(interactions: Config, tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    before = train(interactions, output, "cpu")
    epochs: list[Epoch] = []

    def interrupt(epoch: Epoch) -> None:
        epochs.append(epoch)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interactions, output, "cpu", on_epoch=interrupt)
    assert read_checkpoint(output).manifest == before
    lines = (tmp_path / "checkpoint.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(epoch) for epoch in epochs]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "checkpoint",
        "checkpoint.metrics.jsonl",
        "checkpoint.training.pt",
        "interactions.parquet",
    ]


def test_a_job_on_the_cpu_admits_deterministic_operations_only(interactions: Config, tmp_path: Path) -> None:
    during: list[bool] = []
    train(
        interactions,
        tmp_path / "checkpoint",
        "cpu",
        on_epoch=lambda _: during.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert during == [True] * 4
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"averaged_epochs": 2.0, "learning_rate_schedule": "cosine", "precision": "bfloat16"},
        {"initialisation": "spectral", "sharpness_weight": 0.5},
    ],
)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resuming_gives_the_bits_of_an_uninterrupted_run(
    interactions: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int, fields: dict[str, object]
) -> None:
    settings = interactions.model_copy(update={"training": interactions.training.model_copy(update=fields)})
    straight: list[Epoch] = []
    whole = train(settings, tmp_path / "whole", "cpu", on_epoch=straight.append)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.train, "SAVING_SHARE", math.inf)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "parts", "cpu", on_epoch=stop)
    steps: list[int] = []
    resumed: list[Epoch] = []
    parts = train(
        settings,
        tmp_path / "parts",
        "cpu",
        resume=True,
        on_step=lambda epoch, *_: steps.append(epoch),
        on_epoch=resumed.append,
    )
    assert set(steps) == set(range(stop_after + 1, 5))  # what was done is not done again
    assert untimed(resumed) == untimed(straight)
    assert parts.files["weights.safetensors"] == whole.files["weights.safetensors"]
    assert (parts.metrics, parts.best_epoch) == (whole.metrics, whole.best_epoch)
    lines = (tmp_path / "parts.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(epoch) for epoch in resumed]
    assert not (tmp_path / "parts.training.pt").exists()


def test_resuming_after_a_kill(interactions: Config, tmp_path: Path) -> None:
    """SIGKILL while epochs run, twice; the third start finishes, with the weights of an uninterrupted run."""
    settings = interactions.model_copy(update={"training": interactions.training.model_copy(update={"epochs": 300})})
    (tmp_path / "config.toml").write_text(
        f"[data]\ninput = {json.dumps(settings.data.input)}\nvalidation = 8\ntest = 12\n"
        f"[model]\nn_concepts = {N_BLOCKS}\nembedding_size = 8\nencoder_hidden_sizes = [16]\n"
        "[training]\naveraged_epochs = 0.0\nepochs = 300\nstopping_step = 300\ntrain_batch_size = 7\n"
        "learning_rate = 0.01\n"
    )
    command = [sys.executable, "-m", "pipeline.cli", "train", "--config", "config.toml", "--resume", "--output"]
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, capture_output=True)
    log, state = tmp_path / "parts.metrics.jsonl", tmp_path / "parts.training.pt"
    epochs_at_kill = []
    for wanted in (40, 120):
        process = subprocess.Popen([*command, "parts"], cwd=tmp_path, stdout=-1, stderr=-1, start_new_session=True)
        while not (state.exists() and log.exists() and len(log.read_bytes().splitlines()) >= wanted):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
        epochs_at_kill.append(len(torch.load(state, weights_only=True)["epochs"]))
    assert 0 < epochs_at_kill[0] < epochs_at_kill[1] < 300
    subprocess.run([*command, "parts"], cwd=tmp_path, check=True, capture_output=True)
    whole, parts = (read_checkpoint(tmp_path / name).manifest for name in ("whole", "parts"))
    assert parts.files["weights.safetensors"] == whole.files["weights.safetensors"]
    assert (parts.metrics, parts.best_epoch) == (whole.metrics, whole.best_epoch)


def stopped(config: Config, output: Path) -> Path:
    """The state of a run that was stopped after its first epoch."""

    def stop(_: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, output, "cpu", on_epoch=stop)
    return output.with_name(f"{output.name}.training.pt")


def test_resuming_another_run_is_refused(interactions: Config, tmp_path: Path) -> None:
    state = stopped(interactions, tmp_path / "checkpoint")
    longer = interactions.training.model_copy(update={"epochs": 9})
    with pytest.raises(InputError) as error:
        train(interactions.model_copy(update={"training": longer}), tmp_path / "checkpoint", "cpu", resume=True)
    assert str(error.value) == (
        f"{state} was left by another run: training.epochs was 4 and is 9. "
        "Resume with what it was started with, or train anew without --resume."
    )
    pl.read_parquet(interactions.data.input)[1:].write_parquet(interactions.data.input)
    with pytest.raises(InputError) as error:
        train(interactions, tmp_path / "checkpoint", "cpu", resume=True)
    assert str(error.value) == (
        f"{state} was left by another run: the interactions are others. "
        "Resume with what it was started with, or train anew without --resume."
    )


def test_resuming_from_a_damaged_state_is_refused(interactions: Config, tmp_path: Path) -> None:
    state = stopped(interactions, tmp_path / "checkpoint")
    for content in (b"", b"not a state", state.read_bytes()[:5000]):
        state.write_bytes(content)
        with pytest.raises(InputError) as error:
            train(interactions, tmp_path / "checkpoint", "cpu", resume=True)
        assert str(error.value).startswith(f"{state} is not a state of training: ")
        assert str(error.value).endswith(" Train anew without --resume.")
    train(interactions, tmp_path / "checkpoint", "cpu")


def test_two_workers_reach_the_loss_of_one(interactions: Config, tmp_path: Path) -> None:
    """Without noise, two processes that share each batch take the steps of one."""
    (tmp_path / "config.toml").write_text(
        f"[data]\ninput = {json.dumps(interactions.data.input)}\nvalidation = 8\ntest = 12\n"
        f"[model]\nn_concepts = {N_BLOCKS}\nembedding_size = 8\nencoder_hidden_sizes = [16]\n"
        "gumbel = false\ndropout = 0.0\nprior_std = 1e-9\n"
        "[training]\nepochs = 6\ntrain_batch_size = 7\nlearning_rate = 0.01\nl2_weights = [0.001, 0.002]\n"
        'initialisation = "spectral"\nsharpness_weight = 0.5\n'
    )
    arguments = ["-m", "pipeline.cli", "train", "--config", "config.toml", "--device", "cpu", "--json", "--output"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runs = {"one": [sys.executable, *arguments, "one"], "two": [sys.executable, *torchrun, *arguments, "two"]}
    printed = {}
    for name, command in runs.items():
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed[name] = json.loads(done.stdout)  # one object: the first worker's
    one, two = (read_checkpoint(tmp_path / name) for name in ("one", "two"))
    losses = {
        name: [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    }
    np.testing.assert_allclose(losses["two"], losses["one"], rtol=1e-5)
    assert losses["one"][-1] < 0.95 * losses["one"][0]
    assert one.weights.keys() == two.weights.keys()
    for name, weight in two.weights.items():
        torch.testing.assert_close(weight, one.weights[name], rtol=1e-3, atol=1e-4)
    assert printed["one"]["metrics"].keys() == printed["two"]["metrics"].keys()


def test_more_workers_than_users_of_a_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.fitting.workers, "size", lambda: 8)
    with pytest.raises(InputError) as error:
        fitted(config())
    assert str(error.value) == (
        "8 workers cannot share batches of 6 users. Start fewer workers, or raise training.train_batch_size."
    )


def test_an_output_that_is_not_ours_is_refused_before_reading(tmp_path: Path) -> None:
    output = tmp_path / "photos"
    output.mkdir()
    (output / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError) as error:
        train(Config(data=DataConfig(input="no such file")), output, "cpu")
    assert str(error.value) == (
        f"{output} has content but no manifest.json, so it will not be replaced. Choose a new output folder."
    )


@pytest.mark.parametrize("available", [True, False])
def test_the_device_to_train_on(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert training_device("cpu") == "cpu"
    assert training_device("auto") == ("cuda" if available else "cpu")
    if available:
        assert training_device("cuda") == "cuda"
        return
    with pytest.raises(InputError) as error:
        training_device("cuda")
    assert str(error.value) == (
        "--device cuda was asked for, but torch finds no CUDA device. "
        "Run on a machine with a GPU and a CUDA build of torch, or choose --device cpu."
    )
