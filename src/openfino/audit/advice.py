"""Which role is safe for each column, and the sentence that says why.

The table alone says which columns are entangled; it cannot say which of two entangled columns is the biology and which
the batch. For that the name is read (:mod:`openfino.audit.words`), unless the user says it (``--keep``, ``--forget``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from openfino.audit.dependence import Dependence
from openfino.audit.describe import Column
from openfino.audit.words import names_a_condition

DETERMINES = 0.95
HOLDS = 0.10  # a tenth of the uncertainty beyond chance: forgetting takes that much along
_UNDECIDED = 0.25
_MOSTLY_MISSING = 0.95
_NEARLY_CONSTANT = 0.995
_LISTED = 3

INFORMATIVE = "informative candidate"
SAFE = "safe to suppress"
ENTANGLED = "entangled: suppress only with anchor {}, never alone"
INSEPARABLE = "entangled: never suppress"
USELESS = "useless"
LEAK = "leak of the label"


@dataclass(frozen=True)
class Advice:
    """The role of a column.

    Attributes:
        role: in words, as shown.
        reason: one sentence.
        anchor: entangled: the informative column that must stay beside it.
        otherwise: leaks: the role that the column would have if it gave no label away.
    """

    role: str
    reason: str
    anchor: str | None = None
    otherwise: "Advice | None" = None


@dataclass(frozen=True)
class Table:
    """The measured pairs, by (given, of)."""

    pairs: Mapping[tuple[str, str], Dependence]

    def u(self, of: str, given: str) -> Dependence:
        """U(of | given)."""
        return self.pairs[given, of]

    def among(self, given: str, others: Collection[str]) -> list[Dependence]:
        """What ``given`` says about each of ``others``, the most bits first."""
        found = [self.pairs[given, other] for other in others if (given, other) in self.pairs]
        return sorted(found, key=lambda pair: -pair.bits)


def holds(pair: Dependence) -> bool:
    """Whether X says enough about Y that forgetting X would take part of Y along."""
    return pair.is_clear and pair.u_adjusted >= HOLDS


def determines(pair: Dependence) -> bool:
    """Whether X settles Y."""
    return pair.is_clear and pair.u_adjusted >= DETERMINES


def anchor_of(held: Sequence[Dependence]) -> str | None:
    """Of the columns that X holds, the first that X does not settle: what it settles goes with it, anchored or not."""
    return next((pair.of for pair in held if not determines(pair)), None)


def advise(
    columns: Mapping[str, Column],
    table: Table,
    *,
    label: str | None = None,
    split: str | None = None,
    keep: Collection[str] = (),
    forget: Collection[str] = (),
) -> dict[str, Advice]:
    """A role and a reason for every column but the image paths."""
    useless = {name: why for name, column in columns.items() if (why := _why_useless(column)) is not None}
    usable = [name for name in columns if name not in useless and name not in (label, split)]
    conditions = [name for name in usable if _is_condition(columns[name], keep, forget)]
    contents = [name for name in usable if name not in conditions]
    advice = {}
    for name, column in columns.items():
        if column.kind == "path":
            continue
        if name == label:
            advice[name] = Advice("label", f"{name} is the task; training never sees it.")
        elif name == split:
            advice[name] = Advice(USELESS, "It says which split an image is in.")
        elif name in useless:
            advice[name] = Advice(USELESS, useless[name])
        else:
            role = (
                _condition(name, table, contents, conditions, told=name in forget)
                if name in conditions
                else _content(name, column, table, contents, conditions)
            )
            advice[name] = _leak(name, role, label, table) or role
    return advice


def _is_condition(column: Column, keep: Collection[str], forget: Collection[str]) -> bool:
    if column.name in keep or column.name in forget:
        return column.name in forget
    is_time = column.coded is not None and column.coded.is_time
    return is_time or names_a_condition(column.name)


def _why_useless(column: Column) -> str | None:
    if column.set_aside is not None:
        return f"Set aside: it {column.set_aside}."
    if column.missing > _MOSTLY_MISSING * column.rows:
        return (
            f"{column.missing / column.rows:.1%} of its values are missing: hardly an image would be guided."
        )
    if column.kind != "discrete":
        return None
    if column.imbalance > _NEARLY_CONSTANT:
        return f"{column.imbalance:.1%} of the images have one value: there is next to nothing to keep or to forget."
    if column.singletons is not None and 2 * column.singletons > column.known:
        return (
            f"{column.singletons:,} of {column.known:,} images are the only one with their value: a prototype needs "
            "several."
        )
    return None


def _condition(
    name: str, table: Table, contents: Sequence[str], conditions: Sequence[str], *, told: bool
) -> Advice:
    """A column that says how the image came about: safe to forget, or entangled."""
    opening = "You named it as one to forget" if told else "It names how the image was taken"
    held = [pair for pair in table.among(name, contents) if holds(pair)]
    if held:
        said = _list([_says(pair) for pair in held])
        anchor = anchor_of(held)
        if anchor is None:
            reason = f"{opening}, but it {said}: whatever forgets it forgets {held[0].of}."
            return Advice(INSEPARABLE, reason)
        reason = f"{opening}, but it {said}: forgetting it alone would erase part of {anchor}."
        return Advice(ENTANGLED.format(anchor), reason, anchor)
    unsure = [pair for pair in table.among(name, contents) if pair.interval[1] > _UNDECIDED]
    if unsure:
        widest = max(unsure, key=lambda pair: pair.interval[1])
        reason = (
            f"{opening}, and {widest.rows:,} rows are too few to call it independent of {widest.of}: "
            f"U({widest.of} | {name}) may be as high as {widest.interval[1]:.2f}."
        )
        return Advice(ENTANGLED.format(widest.of), reason, widest.of)
    among = table.among(name, contents)
    most = max((pair.u_adjusted for pair in among), default=0.0)
    said = f"next to nothing about any column worth keeping (corrected U at most {max(most, 0.0):.2f})"
    reason = f"{opening}, and it says {said}."
    shared = [pair.of for pair in table.among(name, conditions) if holds(pair)]
    if shared:
        reason = f"{reason[:-1]}; it goes together with {_list(shared)}, which would be forgotten with it."
    return Advice(SAFE, reason)


def _content(
    name: str, column: Column, table: Table, contents: Sequence[str], conditions: Sequence[str]
) -> Advice:
    """A column that may say what the image shows."""
    per_value = (
        f"{column.values:,} values with {column.known / column.values:,.0f} images each"
        if column.kind == "discrete" and column.values
        else f"a {column.kind} quantity with {column.known:,} known values"
    )
    known_from = [other for other in contents if other != name and determines(table.u(name, other))]
    holders = [other for other in conditions if holds(table.u(name, other))]
    reason = f"It has {per_value}" if column.kind == "discrete" else f"It is {per_value}"
    if known_from:
        reason += f"; {_list(known_from)} already tells it"
    if holders:
        shown = _list([f"{other} ({table.u(name, other).u_adjusted:.2f})" for other in holders])
        which = "one of these" if len(holders) > 1 else holders[0]
        reason += f"; told by {shown}, so keep it if {which} is ever suppressed"
    if not known_from and not holders:
        reason += "; no condition of acquisition tells it"
    return Advice(INFORMATIVE, reason + ".")


def _leak(name: str, role: Advice, label: str | None, table: Table) -> Advice | None:
    if label is None or (name, label) not in table.pairs or not determines(table.u(label, name)):
        return None
    u = table.u(label, name).u_adjusted
    reason = (
        f"It gives {label} away (corrected U {u:.2f}): guiding by it is supervision, honest only if it is known of "
        f"every image without anyone having looked for {label}. Otherwise: {role.role}."
    )
    return Advice(LEAK, reason, otherwise=role)


def _says(pair: Dependence) -> str:
    verb = "determines" if determines(pair) else "holds"
    return f"{verb} {pair.of} (U {pair.u:.2f}, corrected {pair.u_adjusted:.2f})"


def _list(items: Sequence[str]) -> str:
    shown = list(items[:_LISTED])
    if len(items) > _LISTED:
        shown.append(f"{len(items) - _LISTED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
