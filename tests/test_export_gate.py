"""Every way a file can differ from the model is refused, with its own words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import SMALL, SMALL_ITEMS, random_histories, small_model

from export.gate import check_parity, check_random
from pipeline.eager import EagerScorer
from pipeline.errors import JobError
from pipeline.histories import Histories
from pipeline.scorer import Scorer, TopK

MODEL = EagerScorer(small_model(SMALL.model, SMALL_ITEMS))
HISTORIES = random_histories([0, 1, 40, 7, 12], SMALL_ITEMS)
PREFIX = "The onnx graph differs from the model at history 0 (0 items, batch of 1): "


class Spoiled:
    """The model, its answers changed."""

    n_items, n_concepts = MODEL.n_items, MODEL.n_concepts

    def __init__(self, spoil: Callable[[TopK], TopK]) -> None:
        self.spoil = spoil

    def __call__(self, histories: Histories, k: int, **options: object) -> TopK:
        top = MODEL(histories, k, **options)  # type: ignore[arg-type]
        return self.spoil(TopK(*(array.copy() for array in top)))


def refusal(artefact: Scorer) -> str:
    with pytest.raises(JobError) as error:
        check_parity("onnx", artefact, MODEL, HISTORIES, k=20)
    return str(error.value)


def changed(field: str, change: Callable[[np.ndarray], None]) -> Spoiled:
    def spoil(top: TopK) -> TopK:
        change(getattr(top, field))
        return top

    return Spoiled(spoil)


def put(row: int, place: int, value: float) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[row, place] = value

    return change


def test_the_model_equals_itself() -> None:
    parity = check_parity("onnx", MODEL, MODEL, HISTORIES, k=20)
    assert parity.model_dump() == {
        "histories": 5,
        "longest_history": 40,
        "k": 20,
        "largest_score_difference": 0.0,
        "largest_share_difference": 0.0,
        "same_sets": 5,
        "same_bits_twice": True,
    }


def test_more_places_than_items() -> None:
    assert check_parity("onnx", MODEL, MODEL, HISTORIES, k=SMALL_ITEMS + 9).k == SMALL_ITEMS


def test_scores_within_the_tolerance_pass_and_are_reported() -> None:
    def shift(scores: np.ndarray) -> None:
        scores -= 5e-5

    parity = check_parity("onnx", changed("scores", shift), MODEL, HISTORIES, k=20)
    assert 4e-5 < parity.largest_score_difference < 6e-5


def test_scores_too_far_off() -> None:
    def shift(scores: np.ndarray) -> None:
        scores += 0.25

    assert refusal(changed("scores", shift)) == PREFIX + "a score is 0.25 off (allowed: 0.0001). Nothing was written."


def test_shares_too_far_off() -> None:
    def shift(shares: np.ndarray) -> None:
        shares[:, :, 0] += 0.5

    message = refusal(changed("concept_shares", shift))
    assert message == PREFIX + "a concept share is 0.5 off (allowed: 0.001). Nothing was written."


def test_an_item_that_the_model_ranks_far_below() -> None:
    worst = int(MODEL(HISTORIES.take(np.array([0])), SMALL_ITEMS).items[0, -1])
    message = refusal(changed("items", put(0, 19, worst)))
    assert message == (
        PREFIX + f"item {worst} is recommended, which is not among the model's best 70. Nothing was written."
    )


def test_an_item_beyond_the_last_place_that_is_no_tie() -> None:
    top = MODEL(HISTORIES.take(np.array([0])), 22)

    def swap(found: TopK) -> TopK:
        if len(found.items) == 1:
            found.items[0, 19], found.scores[0, 19] = top.items[0, 21], top.scores[0, 21]
            found.concept_shares[0, 19] = top.concept_shares[0, 21]
        return found

    behind = float(top.scores[0, 19] - top.scores[0, 21])
    assert refusal(Spoiled(swap)) == (
        PREFIX
        + f"an item is recommended that scores {behind:.3g} less than the last place (ties: 1e-05). "
        + "Nothing was written."
    )


def test_an_item_twice() -> None:
    def repeat(items: np.ndarray) -> None:
        items[0, 1] = items[0, 0]

    assert refusal(changed("items", repeat)) == (
        PREFIX + "an item is missing or recommended twice. Nothing was written."
    )


def test_fewer_recommendations() -> None:
    message = refusal(changed("items", put(0, 19, -1)))
    assert message == PREFIX + "19 recommendations instead of 20. Nothing was written."


def test_a_hole_in_the_list() -> None:
    def hole(top: TopK) -> TopK:
        top.items[0, 3] = -1
        return top

    assert refusal(Spoiled(hole)).endswith("19 recommendations instead of 20. Nothing was written.")


def test_not_a_number() -> None:
    message = refusal(changed("scores", put(0, 5, np.nan)))
    assert message == PREFIX + "a score is not finite. Nothing was written."


def test_out_of_order() -> None:
    def swap(top: TopK) -> TopK:
        for array in top:
            array[0, [4, 5]] = array[0, [5, 4]]
        return top

    message = refusal(Spoiled(swap))
    assert message == PREFIX + "place 6 is out of order (by score, then by item number). Nothing was written."


def test_a_seen_item() -> None:
    histories = HISTORIES.take(np.array([2]))

    def unseen(histories: Histories, k: int, **options: object) -> TopK:
        return MODEL(histories, k)

    artefact = Spoiled(lambda top: top)
    artefact.__class__ = type("Forgetful", (Spoiled,), {"__call__": lambda self, h, k, **o: unseen(h, k)})
    with pytest.raises(JobError) as error:
        check_parity("onnx", artefact, MODEL, histories, k=SMALL_ITEMS)
    assert str(error.value) == (
        "The onnx graph differs from the model at history 0 (40 items, batch of 1): "
        "500 recommendations instead of 460. Nothing was written."
    )
    with pytest.raises(JobError) as error:
        check_parity("onnx", artefact, MODEL, histories, k=60)
    seen = next(item for item in MODEL(histories, 60).items[0] if item in histories[0])
    assert str(error.value) == (
        "The onnx graph differs from the model at history 0 (40 items, batch of 1): "
        f"item {seen} is recommended although it is excluded. Nothing was written."
    )


def test_other_bits_on_the_second_run() -> None:
    calls = iter(range(1000))

    def drift(scores: np.ndarray) -> None:
        scores -= np.float32(1e-6) * next(calls)

    message = refusal(changed("scores", drift))
    assert message == "The onnx graph answered twice with other scores (1 users). Nothing was written."


def test_random_operators() -> None:
    check_random("onnx", [])
    with pytest.raises(JobError) as error:
        check_random("onnx", ["RandomNormal", "Dropout"])
    assert str(error.value) == "The onnx graph holds random operators: RandomNormal, Dropout. Nothing was written."
