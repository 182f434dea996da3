import numpy as np

from openfino.images.loader import build_loader
from openfino.images.order import in_runs
from openfino.recipe import IbotSettings, ImageSettings, ViewSettings
from tiny_models import write_arrays, write_manifest

GROUPS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, -1, -1, 1])


def ordered(seed, length=2):
    rng = np.random.default_rng(seed)
    return in_runs(rng.permutation(len(GROUPS)), GROUPS, length, rng)


def test_an_order_in_runs_holds_every_image_once():
    for length in (1, 2, 3, 50):
        assert sorted(ordered(0, length)) == list(range(len(GROUPS)))


def test_runs_are_of_one_group_and_the_whole_ones_come_first():
    groups = GROUPS[ordered(1)].reshape(-1, 2)
    # 5, 4, 1 and 2 images: 2 + 2 + 0 + 1 whole runs of two, then two single images.
    assert (groups[:5, 0] == groups[:5, 1]).all()
    assert sorted(groups[:5, 0]) == [-1, 0, 0, 1, 1]
    assert sorted(groups[5]) == [0, 2]


def test_runs_and_what_is_in_them_are_shuffled():
    orders = [ordered(seed) for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert len({tuple(GROUPS[order]) for order in orders}) > 5
    assert len({tuple(order[GROUPS[order] == 0]) for order in orders}) > 10


def test_batches_of_a_loader_with_runs_hold_several_images_of_each_group(tmp_path):
    names = write_arrays(tmp_path / "images", 24, 3)
    manifest = write_manifest(tmp_path, {"path": [f"images/{name}" for name in names]})
    groups = np.arange(24) % 6

    def batches(runs):
        loader = build_loader(
            manifest,
            np.arange(24),
            images=ImageSettings(),
            views=ViewSettings(global_size=16, local_count=0),
            ibot=IbotSettings(mask_fraction=0),
            channels=["r", "g", "b"],
            patch_size=8,
            seed=0,
            start_step=0,
            stop_step=6,
            batch_size=8,
            runs=runs,
        )
        return [batch.rows.numpy() for batch in loader]

    in_two = batches((groups, 2))
    assert all((np.bincount(groups[rows], minlength=6) % 2 == 0).all() for rows in in_two)
    assert sorted(np.concatenate(in_two[:3])) == list(range(24))
    assert not np.array_equal(in_two[0], in_two[3])
    plain = batches(None)
    assert not all((np.bincount(groups[rows], minlength=6) % 2 == 0).all() for rows in plain)
