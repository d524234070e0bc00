"""Every way a file can differ from the model is refused, with its own words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import SMALL, SMALL_ITEMS, random_histories, small_model

from export.gate import Gate, check_random
from pipeline.eager import EagerScorer
from pipeline.errors import JobError
from pipeline.histories import Histories
from pipeline.scorer import Scorer, TopK
from pipeline.split import HeldOut

MODEL = EagerScorer(small_model(SMALL.model, SMALL_ITEMS))
HISTORIES = random_histories([0, 1, 40, 7, 12], SMALL_ITEMS)
NOBODY = HeldOut(Histories.of([]), Histories.of([]))
PREFIX = "The onnx graph differs from the model at history 0 (0 items, batch of 1): "


class Spoiled:
    """The model, its answers changed."""

    n_items, n_concepts = MODEL.n_items, MODEL.n_concepts

    def __init__(self, spoil: Callable[[TopK], TopK]) -> None:
        self.spoil = spoil

    def __call__(self, histories: Histories, k: int, **options: object) -> TopK:
        top = MODEL(histories, k, **options)  # type: ignore[arg-type]
        return self.spoil(TopK(*(array.copy() for array in top)))


def best_and_others() -> HeldOut:
    """Users whose targets are what the model recommends first and tenth."""
    top = MODEL(HISTORIES, 10, excluded=HISTORIES)
    return HeldOut(HISTORIES, Histories.of([sorted(items.tolist()) for items in top.items[:, [0, 9]]]))


def refusal(artefact: Scorer, held_out: HeldOut = NOBODY, precision: str = "fp32") -> str:
    gate = Gate(MODEL, HISTORIES, held_out, precision, k=20)
    with pytest.raises(JobError) as error:
        gate.check("onnx", artefact)
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
    parity = Gate(MODEL, HISTORIES, best_and_others(), k=20).check("onnx", MODEL)
    perfect = parity.metrics["recall@20"]
    assert (perfect.model, perfect.artefact) == (1.0, 1.0)
    assert parity.largest_batch_difference < 1e-5
    assert parity.model_dump(exclude={"metrics", "largest_batch_difference"}) == {
        "histories": 5,
        "longest_history": 40,
        "k": 20,
        "largest_score_difference": 0.0,
        "largest_share_difference": 0.0,
        "same_sets": 5,
        "mean_overlap": 1.0,
        "largest_disorder": 0.0,
        "held_out_users": 5,
        "same_bits_twice": True,
    }


def test_what_the_gate_says_to_people() -> None:
    parity = Gate(MODEL, HISTORIES, best_and_others(), k=20).check("onnx", MODEL)
    assert parity.sentence() == (
        "5 histories (longest 40): scores within 0.0e+00, 5 times the same top-20 set (overlap 1.0000); "
        "5 held-out users: metrics at most 0.0e+00 lower; nothing random"
    )


def test_nobody_held_out() -> None:
    parity = Gate(MODEL, HISTORIES, NOBODY, k=20).check("onnx", MODEL)
    assert (parity.held_out_users, parity.metrics) == (0, {})


def test_more_places_than_items() -> None:
    assert Gate(MODEL, HISTORIES, NOBODY, k=SMALL_ITEMS + 9).check("onnx", MODEL).k == SMALL_ITEMS


def test_every_option_is_compared() -> None:
    """One batch weighs concepts and allows half the items: a file that ignores either is refused."""
    asked = []

    def note(histories: Histories, k: int, **options: object) -> TopK:
        asked.append(sorted(options))
        return MODEL(histories, k, **options)  # type: ignore[arg-type]

    noting = Spoiled(lambda top: top)
    noting.__class__ = type("Noting", (Spoiled,), {"__call__": lambda self, h, k, **o: note(h, k, **o)})
    many = random_histories([3] * 8, SMALL_ITEMS)
    Gate(MODEL, many, NOBODY, k=20).check("onnx", noting)
    assert ["allowed", "concept_weights", "excluded"] in asked
    for forgotten in ("allowed", "concept_weights"):
        noting.__class__ = type(
            "Forgetful",
            (Spoiled,),
            {"__call__": lambda self, h, k, **o: MODEL(h, k, **{n: v for n, v in o.items() if n != forgotten})},  # noqa: B023
        )
        with pytest.raises(JobError, match=r"at history \d \(3 items, batch of 3\)"):
            Gate(MODEL, many, NOBODY, k=20).check("onnx", noting)


def test_scores_within_the_tolerance_pass_and_are_reported() -> None:
    def shift(scores: np.ndarray) -> None:
        scores -= 5e-5

    parity = Gate(MODEL, HISTORIES, NOBODY, k=20).check("onnx", changed("scores", shift))
    assert 4e-5 < parity.largest_score_difference < 6e-5


def test_the_worst_score_is_named() -> None:
    """Every score is off; the message is about the one that is off most, wherever it is."""

    def shift(top: TopK) -> TopK:
        top.scores[:] += 0.25 if len(top.scores) == 1 else 0.5
        return top

    assert refusal(Spoiled(shift)) == (
        "The onnx graph differs from the model at history 1 (1 items, batch of 2): a score is 0.5 off "
        "(allowed: 0.0001). Nothing was written."
    )


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 0.0001), ("fp16", 0.01), ("int8", 0.1)])
def test_smaller_precisions_may_be_further_off(precision: str, allowed: float) -> None:
    def shift(scores: np.ndarray) -> None:
        scores += np.float32(allowed * 0.9)

    Gate(MODEL, HISTORIES, NOBODY, precision, k=20).check("onnx", changed("scores", shift))

    def shift_more(scores: np.ndarray) -> None:
        scores += np.float32(allowed * 1.1)

    assert f"(allowed: {allowed:g})" in refusal(changed("scores", shift_more), precision=precision)


def first_answers(change: Callable[[TopK], object]) -> Spoiled:
    """The gate's first case, asked twice, is answered wrongly; everything after it is right."""
    left = [2]

    def spoil(top: TopK) -> TopK:
        if left[0]:
            left[0] -= 1
            change(top)
        return top

    return Spoiled(spoil)


def test_a_worse_order() -> None:
    """Two items change places and keep each other's scores: right for the place, not for the item."""
    scores = MODEL(HISTORIES.take(np.array([0])), 20).scores[0]
    place = int(np.argmin(scores[:-1] - scores[1:]))
    gap = float(scores[place] - scores[place + 1])
    assert 1e-4 < gap < 0.1

    def swap(top: TopK) -> None:
        for array in (top.items, top.concept_shares):
            array[0, [place, place + 1]] = array[0, [place + 1, place]]

    assert refusal(first_answers(swap)) == PREFIX + f"a score is {gap:.3g} off (allowed: 0.0001). Nothing was written."
    parity = Gate(MODEL, HISTORIES, NOBODY, "int8", k=20).check("onnx", first_answers(swap))
    assert parity.largest_disorder == pytest.approx(gap)


def test_too_small_an_overlap() -> None:
    """The last place of one user goes to the next item, which scores almost the same."""
    top = MODEL(HISTORIES.take(np.array([0])), 24)

    def replace(found: TopK) -> None:
        for field in TopK._fields:
            getattr(found, field)[0, 18:20] = getattr(top, field)[0, 20:22]

    assert float(top.scores[0, 19] - top.scores[0, 21]) < 0.1
    assert refusal(first_answers(replace), precision="int8") == (
        "The onnx graph finds 0.9800 of the model's top 20 (allowed: 0.99), and least, 0.9000, at history 0 "
        "(0 items, batch of 1). Nothing was written."
    )


def test_worse_recommendations_for_held_out_users() -> None:
    """Every score, every item within the tolerances of int8, and still not what users went on to choose."""
    held_out = best_and_others()
    gate = Gate(MODEL, HISTORIES, held_out, "int8", k=20)
    found = dict(gate._metrics(MODEL))
    found["ndcg@100"] = found["ndcg@100"] - np.array([0.01, 0.01, 0.02, 0.01, 0.01])
    gate._metrics = lambda scorer: found  # type: ignore[method-assign]
    with pytest.raises(JobError) as error:
        gate.check("onnx", MODEL)
    ndcg_U = gate.metrics["ndcg@100"]
    assert str(error.value) == (
        f"The onnx graph recommends worse than the model: ndcg@100 of 5 held-out users is {ndcg_U.mean() - 0.012:.4f} "
        f"instead of {ndcg_U.mean():.4f} (allowed loss: 0.001 and twice its standard error, 0.0018); worst at held-out "
        f"user 2 (40 items): {ndcg_U[2] - 0.02:.4f} instead of {ndcg_U[2]:.4f}. Nothing was written."
    )


def test_a_user_who_depends_on_the_batch() -> None:
    def shift(top: TopK) -> TopK:
        if len(top.scores) == 5:  # the users scored alone are also scored together, all five
            top.scores[3] += 0.01
        return top

    assert refusal(Spoiled(shift)) == (
        "The onnx graph differs from the model at history 3 (7 items, alone): a score differs by 0.01 from the one in "
        "a batch (allowed: 0.0001). Nothing was written."
    )


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
        Gate(MODEL, histories, NOBODY, k=SMALL_ITEMS).check("onnx", artefact)
    assert str(error.value) == (
        "The onnx graph differs from the model at history 0 (40 items, batch of 1): "
        "500 recommendations instead of 460. Nothing was written."
    )
    with pytest.raises(JobError) as error:
        Gate(MODEL, histories, NOBODY, k=60).check("onnx", artefact)
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
