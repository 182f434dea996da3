"""What the name of a column suggests. Names only break ties that the table itself cannot break."""

import re


def _words(text: str) -> list[str]:
    return text.split()


# How an image came about: candidates to forget. What it shows: everything else.
_CONDITIONS = frozenset(
    _words("""
    acquired acquisition batch bench cam camera cassette center centre clinic date day detector device exposure field
    flowcell fov gain hospital hour illumination imager institution institute instrument lab laboratory lamp lane lens
    lot machine magnification microscope minute month objective operator orbit photographer plate platform position
    pos protocol reader replicate resolution rig robot run satellite scan scanner season sensor sequencer session shift
    site slide source stainer station technician technologist time timestamp tray vendor visit week well year
    """)
)
_GROUPS = frozenset(
    _words("""
    animal camera case cassette clinic donor embryo family field hospital individual location mouse movie participant
    patient plate rat scene sequence session site slide specimen station subject tile video volume
    """)
)
_IDENTIFIERS = frozenset(
    _words("accession barcode guid hash id identifier idx index key number serial uid uuid")
)
_SPLITS = ("split", "fold", "subset", "partition", "set")


def words_of(name: str) -> list[str]:
    """``plateID_2`` -> plate, id, 2."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word.lower() for word in re.split(r"[\W_]+|(?<=[A-Za-z])(?=\d)", spaced) if word]


def names_a_condition(name: str) -> bool:
    """Whether the name is that of a condition of acquisition, such as plate, scanner or date."""
    return any(_singular(word) in _CONDITIONS for word in words_of(name))


def names_a_group(name: str) -> bool:
    """Whether the name is that of something with several images that belong on one side of a split."""
    return any(_singular(word) in _GROUPS for word in words_of(name))


def names_an_identifier(name: str) -> bool:
    """Whether the name says that the column identifies something."""
    return any(word in _IDENTIFIERS for word in words_of(name))


def split_column(names: list[str]) -> str | None:
    """The column that is called as splits usually are."""
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[word] for word in _SPLITS if word in lowered), None)


def _singular(word: str) -> str:
    return word.removesuffix("s") if word not in _CONDITIONS | _GROUPS else word
