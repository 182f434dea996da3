"""Every localisation pattern lies where its name says, judged against the geometry of the scene."""

from dataclasses import replace

import numpy as np
import pytest

from openfino.keyed import keyed_generator
from openfino.sampledata.cells import FIELD, Scene, build_scene
from openfino.sampledata.screen import CELL_LINES, LOCALIZATIONS, Antibody
from openfino.sampledata.stains import References, draw_protein, draw_references

SIDE = 192
PLAIN = Antibody("plain", 0, 1.0, 1.0, 1.0, 0.3, 0.0, 1.0, 1, 0.0, 0.0)


@pytest.fixture(scope="module", params=range(len(CELL_LINES)), ids=[line.name for line in CELL_LINES])
def drawn(request: pytest.FixtureRequest) -> tuple[Scene, References, dict[str, np.ndarray]]:
    rng = keyed_generator(11, request.param)
    scene = build_scene(rng, CELL_LINES[request.param], SIDE)
    references = draw_references(rng, scene)
    proteins = {
        name: draw_protein(rng, scene, references, replace(PLAIN, pattern=pattern))
        for pattern, name in enumerate(LOCALIZATIONS)
    }
    return scene, references, proteins


def contrast(image: np.ndarray, where: np.ndarray, against: np.ndarray) -> float:
    return float(image[where].mean() / (image[against].mean() + 1e-6))


def test_patterns_are_finite_and_confined_to_cells(drawn: tuple) -> None:
    scene, _, proteins = drawn
    outside = scene.edge < -3.0
    for name, image in proteins.items():
        assert image.dtype == np.float32, name
        assert image.shape == (SIDE, SIDE), name
        assert np.isfinite(image).all(), name
        assert image.min() > -0.1, name
        assert np.percentile(image, 99.5) > 0.3, name
        assert image[outside].mean() < 0.03, name


def test_nuclear_patterns(drawn: tuple) -> None:
    scene, _, proteins = drawn
    inside, rim = scene.envelope > 1.2, np.abs(scene.envelope - 0.2) < 0.4
    nucleolus, cytoplasm = scene.nucleolus > 0.4, (scene.envelope < -1.5) & (scene.edge > 1.0)
    plain = inside & (scene.nucleolus < -0.8)
    assert contrast(proteins["nucleoplasm"], plain, cytoplasm) > 20
    assert contrast(proteins["nucleoplasm"], plain, nucleolus) > 1.3
    assert contrast(proteins["nucleoli"], nucleolus, plain) > 3
    assert contrast(proteins["nuclear_membrane"], rim, inside) > 2
    assert contrast(proteins["nuclear_membrane"], rim, cytoplasm) > 10


def test_cytoplasmic_patterns_spare_the_nucleus(drawn: tuple) -> None:
    scene, _, proteins = drawn
    inside, cytoplasm = scene.envelope > 1.2, (scene.envelope < -0.8) & (scene.edge > 1.5)
    for name in ("cytosol", "mitochondria", "er", "vesicles", "microtubules"):
        assert contrast(proteins[name], cytoplasm, inside) > 1.3, name


def test_plasma_membrane_is_at_the_outline(drawn: tuple) -> None:
    scene, _, proteins = drawn
    rim, interior = np.abs(scene.edge - 0.35) < 0.3, scene.edge > 2.0
    assert contrast(proteins["plasma_membrane"], rim, interior) > 2.5


def test_golgi_is_compact_and_beside_the_centrosome(drawn: tuple) -> None:
    scene, _, proteins = drawn
    y, x = (np.indices((SIDE, SIDE)) + 0.5) * scene.pixel
    centrosome = scene.cells.centrosome[scene.owner]
    distance = np.hypot(x - centrosome[..., 0], y - centrosome[..., 1])
    cytoplasm = (scene.envelope < -0.5) & (scene.edge > 0.8)
    if (cytoplasm & (distance < 2.5)).sum() < 30:
        pytest.skip("no centrosome in the field")
    assert contrast(proteins["golgi"], cytoplasm & (distance < 2.5), cytoplasm & (distance > 6.0)) > 4


def test_microtubule_and_er_proteins_follow_the_reference_stains(drawn: tuple) -> None:
    scene, references, proteins = drawn
    inside = scene.edge > 1.0

    def correlation(image: np.ndarray, reference: np.ndarray) -> float:
        return float(np.corrcoef(image[inside], reference[inside])[0, 1])

    assert correlation(proteins["microtubules"], references.microtubules) > 0.75
    assert correlation(proteins["er"], references.er) > 0.75
    assert correlation(proteins["vesicles"], references.er) < 0.5


def test_vesicles_are_sparse_and_cytosol_is_even(drawn: tuple) -> None:
    scene, _, proteins = drawn
    cytoplasm = (scene.envelope < -1.0) & (scene.edge > 1.5)

    def spottiness(image: np.ndarray) -> float:
        return float(np.percentile(image[cytoplasm], 98) / (np.median(image[cytoplasm]) + 1e-3))

    assert spottiness(proteins["vesicles"]) > 5
    assert spottiness(proteins["cytosol"]) < 2.5


def test_references_stain_their_compartments(drawn: tuple) -> None:
    scene, references, _ = drawn
    inside, cytoplasm = scene.envelope > 1.0, (scene.envelope < -1.0) & (scene.edge > 1.5)
    assert contrast(references.nucleus, inside, cytoplasm) > 20
    assert contrast(references.microtubules, cytoplasm, inside) > 1.2
    assert contrast(references.er, cytoplasm, inside) > 1.5


def test_scene_geometry_is_consistent(drawn: tuple) -> None:
    scene = drawn[0]
    assert (scene.edge[scene.envelope > 0] > 0).all()  # a nucleus lies in its cell
    assert (scene.envelope[scene.nucleolus > 0] > 0).all()  # a nucleolus lies in its nucleus
    assert scene.pixel == pytest.approx(FIELD / SIDE)
    for mask in (scene.cell, scene.nucleus, scene.contact, scene.thickness):
        assert mask.min() >= 0
        assert mask.max() <= 1
    assert (scene.envelope > 1.0).any()
    # Near the outline a distance changes by about a pixel per pixel (stretched circles: up to twice).
    near = np.abs(scene.edge[:, :-1]) < 2.0
    steps = np.abs(np.diff(scene.edge, axis=1))[near] / scene.pixel
    assert 0.3 < np.median(steps) < 1.2
    assert np.percentile(steps, 98) < 2.5


def test_antibody_numbers_have_their_effect() -> None:
    rng = keyed_generator(3)
    scene = build_scene(rng, CELL_LINES[0], SIDE)
    references = draw_references(rng, scene)

    def draw(**changes: float) -> np.ndarray:
        antibody = replace(PLAIN, pattern=LOCALIZATIONS.index("nucleoplasm"), **changes)
        return draw_protein(keyed_generator(4), scene, references, antibody)

    plain, nucleus = draw(), scene.envelope > 0.5
    cytoplasm = (scene.envelope < -1.0) & (scene.edge > 1.5)
    assert np.allclose(draw(intensity=2.0), 2.0 * plain, atol=1e-6)
    assert draw(haze=0.1)[cytoplasm].mean() > plain[cytoplasm].mean() + 0.01
    second = draw(secondary=LOCALIZATIONS.index("cytosol"), secondary_weight=0.3)
    assert second[cytoplasm].mean() > plain[cytoplasm].mean() + 0.05
    assert draw(expressing=0.0)[nucleus].mean() < 0.4 * plain[nucleus].mean()
    assert not np.allclose(draw(variability=0.5), plain)
