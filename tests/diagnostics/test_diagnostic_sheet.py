import numpy as np
from PIL import Image

from openfino.diagnostics.colours import colour_map, unit_colours
from openfino.diagnostics.diagnosis import diagnose
from openfino.diagnostics.sheet import PANELS, draw_panels, draw_sheet, write_png
from openfino.evaluation.features import Features

GENERATOR = np.random.default_rng(0)


def diagnosed(grid=(4, 6), patch=(1, 4), images=2):
    patches = GENERATOR.standard_normal((images, grid[0] * grid[1], 8)).astype(np.float32)
    cls = patches[:, 0]
    return diagnose(Features(np.arange(images), cls, cls, patches, [], []), grid, patch)


def photo(height=50, width=70):
    return GENERATOR.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_every_patch_is_a_square_of_its_colour():
    found = diagnosed()
    panels = draw_panels(found, 1, photo(), side=60)
    assert {panel.shape for panel in panels.values()} == {(40, 60, 3)}
    for row in range(4):
        for column in range(6):
            cell = np.s_[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
            assert (panels["pca"][cell] == unit_colours(found.colours[1, row, column])).all()
            expected = colour_map(found.cls[1, row, column], *found.scales["cls"])
            assert (panels["cls"][cell] == expected).all()
            middle = panels["similarity"][10 * row + 5, 10 * column + 5]
            assert (middle == colour_map(found.similarity[1, row, column], *found.scales["similarity"])).all()


def test_the_reference_patch_is_framed_in_the_image_and_its_map():
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    panels = draw_panels(diagnosed(), 0, image, side=60)
    for name in ("image", "similarity"):
        assert (panels[name][9, 39:51] == 255).all()  # above row 1, column 4
        assert (panels[name][20, 39:51] == 255).all()
        assert (panels[name][8:22, 38] == 0).all()
    assert (panels["image"][10:20, 40:50] == 128).all()
    assert (panels["image"] != 128).any(axis=2).sum() == 4 * 11 + 4 * 13


def test_a_frame_at_the_edge_and_a_grid_finer_than_the_panel():
    panels = draw_panels(diagnosed((50, 40), (0, 39), 1), 0, photo(), side=20)
    assert {panel.shape for panel in panels.values()} == {(50, 40, 3)}
    assert (panels["similarity"][1, 38:] == 255).all()


def test_the_sheet_holds_every_panel_in_its_row(tmp_path):
    found = diagnosed()
    rows = [draw_panels(found, place, photo(), side=60) for place in range(2)]
    sheet = draw_sheet(found, rows, ["a.png", "b.png"], "title")
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (40, 60, 3))[:, :, 0]
    places = {}
    for number, panels in enumerate(rows):
        for name, panel in panels.items():
            hits = np.argwhere((windows[:, :, ::39, ::59] == panel[::39, ::59]).all(axis=(2, 3, 4)))
            places[number, name] = next(
                tuple(hit) for hit in hits.tolist() if (windows[tuple(hit)] == panel).all()
            )
    for number in range(2):
        row = [places[number, name] for name in PANELS]
        assert len({top for top, _ in row}) == 1
        assert [left for _, left in row] == sorted({left for _, left in row})
    assert places[1, "pca"][0] > places[0, "pca"][0]
    write_png(tmp_path / "new" / "sheet.png", sheet)
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert np.array_equal(np.asarray(image), sheet)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]
