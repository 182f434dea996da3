"""The dependence structure of the planned screen: what determines what, and how strongly."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from openfino.sampledata.screen import (
    ANTIBODIES_PER_PATTERN,
    CELL_LINES,
    FIELDS_PER_WELL,
    LOCALIZATIONS,
    Screen,
    Shot,
    plan_screen,
)

IMAGES = 2400


@pytest.fixture(scope="module", params=[0, 1, 7])
def screen(request: pytest.FixtureRequest) -> Screen:
    return plan_screen(IMAGES, request.param)


def split_of(screen: Screen, *splits: str) -> list[Shot]:
    return [shot for shot in screen.shots if shot.split in splits]


def entropy(values: list) -> float:
    share = np.array(list(Counter(values).values())) / len(values)
    return float(-(share * np.log(share)).sum())


def determination(shots: list[Shot], target: str, given: str) -> float:
    """U(target | given) = 1 - H(target | given) / H(target)."""
    y, x = [getattr(shot, target) for shot in shots], [getattr(shot, given) for shot in shots]
    return 1.0 - (entropy(list(zip(x, y, strict=True))) - entropy(x)) / entropy(y)


def test_antibodies_cover_the_patterns_as_declared(screen: Screen) -> None:
    assert len(screen.antibodies) == 60
    counts = Counter(antibody.pattern for antibody in screen.antibodies)
    assert tuple(counts[pattern] for pattern in range(len(LOCALIZATIONS))) == ANTIBODIES_PER_PATTERN
    assert len({antibody.name for antibody in screen.antibodies}) == 60
    assert all(antibody.secondary != antibody.pattern for antibody in screen.antibodies)


def test_names_do_not_tell_the_pattern(screen: Screen) -> None:
    patterns = [antibody.pattern for antibody in screen.antibodies]
    neighbours = sum(a == b for a, b in pairwise(patterns))
    assert neighbours < 20  # 50 if antibodies were numbered pattern by pattern, about 6 by chance


def test_splits_have_their_shares(screen: Screen) -> None:
    counts = Counter(shot.split for shot in screen.shots)
    assert counts == {"train": 1440, "val": 288, "test_id": 240, "test_ood": 432}
    assert [shot.number for shot in screen.shots] == list(range(IMAGES))


def test_dependence_is_that_of_the_atlas(screen: Screen) -> None:
    """fino.md section 5: U(antibody | plate) = 0.652, U(plate | antibody) = 0.869."""
    train = split_of(screen, "train")
    assert determination(train, "antibody", "plate") == pytest.approx(0.652, abs=0.05)
    assert determination(train, "plate", "antibody") == pytest.approx(0.869, abs=0.10)
    assert determination(train, "operator", "plate") < 0.05
    assert determination(train, "operator", "antibody") < 0.08


def test_unseen_plates_are_new_and_recombine_what_training_shows(screen: Screen) -> None:
    def pairs(shots: list[Shot]) -> set[tuple[int, int]]:
        return {(shot.antibody, screen.plates[shot.plate].cell_line) for shot in shots}

    train, ood = split_of(screen, "train"), split_of(screen, "test_ood")
    seen, new = pairs(train), pairs(ood)
    assert not {shot.plate for shot in ood} & {
        shot.plate for shot in split_of(screen, "train", "val", "test_id")
    }
    assert {antibody for antibody, _ in new} == {antibody for antibody, _ in seen}
    assert {line for _, line in new} == {line for _, line in seen} == set(range(len(CELL_LINES)))
    assert not new & seen
    labels = {screen.antibodies[shot.antibody].pattern for shot in ood}
    assert labels == set(range(len(LOCALIZATIONS)))


def test_held_out_images_come_from_training_plates_and_antibodies(screen: Screen) -> None:
    train, held_out = split_of(screen, "train"), split_of(screen, "test_id")
    assert {shot.plate for shot in held_out} <= {shot.plate for shot in train}
    assert {shot.antibody for shot in held_out} <= {shot.antibody for shot in train}


def test_validation_is_half_new_plates_and_shows_every_pattern(screen: Screen) -> None:
    train_plates = {shot.plate for shot in split_of(screen, "train")}
    val = split_of(screen, "val")
    new = [shot for shot in val if shot.plate not in train_plates]
    assert len(new) == len(val) / 2
    patterns = {screen.antibodies[shot.antibody].pattern for shot in new}
    assert patterns == set(range(len(LOCALIZATIONS)))


def test_a_well_holds_one_antibody_and_few_fields(screen: Screen) -> None:
    wells: dict[tuple[int, str], list[Shot]] = {}
    for shot in screen.shots:
        wells.setdefault((shot.plate, shot.well), []).append(shot)
    for shots in wells.values():
        assert len({shot.antibody for shot in shots}) == 1
        assert len(shots) <= FIELDS_PER_WELL


def test_a_plate_is_acquired_in_one_session_well_after_well(screen: Screen) -> None:
    days = [plate.started.date() for plate in screen.plates]
    assert len(set(days)) == len(days)
    assert days == sorted(days)
    for plate in screen.plates:
        shots = sorted(
            (shot for shot in screen.shots if shot.plate == plate.number), key=lambda s: s.acquired
        )
        assert [shot.well_number for shot in shots] == sorted(shot.well_number for shot in shots)
        assert shots[0].acquired > plate.started
        assert (shots[-1].acquired - plate.started).total_seconds() < 3 * 3600
        assert 8 <= plate.started.hour < 18


@pytest.mark.parametrize("images", [20, 37, 100, 12_000])
def test_any_number_of_images_fills_every_split(images: int) -> None:
    screen = plan_screen(images, 0)
    assert len(screen.shots) == images
    assert {shot.split for shot in screen.shots} == {"train", "val", "test_id", "test_ood"}
    names = {(shot.plate, shot.acquired) for shot in screen.shots}
    assert len(names) == images


def test_the_seed_changes_the_screen() -> None:
    assert plan_screen(100, 3) == plan_screen(100, 3)
    assert plan_screen(100, 3).plates != plan_screen(100, 4).plates
    assert plan_screen(100, 3).antibodies != plan_screen(100, 4).antibodies
