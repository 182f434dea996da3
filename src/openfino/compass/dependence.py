"""What the dependence of the columns says against roles, before and after they are tried."""

from collections.abc import Mapping
from dataclasses import replace

from openfino.audit.guard import entangled_problems
from openfino.compass.plan import Role
from openfino.preflight import Preflight
from openfino.recipe import Recipe


def cautions(ready: Preflight, recipe: Recipe, roles: Mapping[str, Role]) -> list[str]:
    """One sentence for each role that ``openfino adapt`` would refuse without ``entangled: record``.

    Args:
        ready: of the recipe.
        recipe: with the columns of label, split and group.
        roles: of the factors that guide; the others are watched.
    """
    specs = {name: replace(spec, role=roles.get(name, "watched")) for name, spec in ready.specs.items()}
    probe = recipe.probe
    asked = {column for column in (probe.label, probe.split, probe.group) if column is not None}
    training = ready.manifest.table[ready.rows.tolist()]
    problems = entangled_problems(training, specs, {*ready.manifest.path_columns, *asked})
    return [f"{problem.where.removeprefix('factors.')} {problem.what}." for problem in problems]
