"""A commented recipe with the advised roles, to start from."""

import json

from openfino.audit.advice import INFORMATIVE, LEAK, SAFE, Advice
from openfino.audit.analysis import Audit
from openfino.audit.coding import number_text
from openfino.audit.describe import Column

_HEAD = """\
# Written by `openfino audit`: the roles that {name} advises. Read the reasons; change what you know better.
# Roles: informative (keep), spurious (forget), watched (only measure).
manifest: {manifest}
out: run
model: facebook/dinov3-vits16-pretrain-lvd1689m  # any starting model: a hub name, a folder, a weights file
"""


def recipe_text(audit: Audit, manifest: str) -> str:
    """The recipe; ``manifest`` is relative to it."""
    lines = [_HEAD.format(name=audit.name, manifest=_word(manifest))]
    paths = [name for name, column in audit.columns.items() if column.kind == "path"]
    if paths:
        lines.append(f"images: {{path_columns: [{', '.join(map(_word, paths))}]}}\n")
    factors = [_factor(audit, name, item) for name, item in audit.advice.items() if _is_factor(audit, name)]
    lines.append("factors:\n" + "".join(factors) if factors else "factors: {}\n")
    left = [name for name in audit.advice if not _is_factor(audit, name)]
    lines += [_comment(f"{name} is left out. {audit.advice[name].reason}", "") for name in left]
    if audit.label is None:
        said = "No label was named (--label): a column that is the task itself must not stay a factor."
        lines.insert(1, _comment(said, ""))
    probe = []
    if audit.label is not None:
        probe.append(f"label: {_word(audit.label)}")
    if audit.splits is not None:
        probe += [f"split: {_word(audit.splits.column)}", f"train: {_word(audit.splits.train)}"]
        if audit.label is not None:
            probe.append(f"tests: [{', '.join(map(_word, audit.splits.splits))}]")
    if probe:
        lines.append(f"probe: {{{', '.join(probe)}}}\n")
    return "".join(lines)


def _is_factor(audit: Audit, name: str) -> bool:
    item = audit.advice[name]
    return item.role in (INFORMATIVE, SAFE, LEAK) or item.role.startswith("entangled")


def _factor(audit: Audit, name: str, item: Advice) -> str:
    role = {INFORMATIVE: "informative", SAFE: "spurious"}.get(item.role, "watched")
    text = f"{name}: {item.role}. {item.reason}"
    if item.role == LEAK:
        text += " Watched until you decide."
    elif item.anchor is not None:
        text += f" Watched is safe; spurious only while {item.anchor} is informative."
    column = audit.columns[name]
    return _comment(text, "  ") + f"  {_word(name)}: {{role: {role}, kind: {column.kind}{_period(column)}}}\n"


def _period(column: Column) -> str:
    if column.period is None:
        return ""
    return f", period: {column.period if isinstance(column.period, str) else number_text(column.period)}"


def _comment(text: str, indent: str) -> str:
    words, lines, line = text.split(), [], f"{indent}#"
    for word in words:
        if len(line) + 1 + len(word) > 110:
            lines.append(line)
            line = f"{indent}#"
        line += f" {word}"
    return "\n".join([*lines, line]) + "\n"


def _word(text: str) -> str:
    """``text`` as YAML: plain if it can only be read as that text, else in double quotes."""
    plain = text.replace("_", "a").replace(".", "a").replace("-", "a").replace("/", "a")
    is_safe = plain.isascii() and plain.isalnum() and text[0].isalpha() and text.lower() not in _YAML_WORDS
    return text if is_safe else json.dumps(text, ensure_ascii=False)


_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf")
