"""The table of the comparison for other programs: CSV with every digit, LaTeX for a paper."""

import csv
import io

from openfino.report.compare_result import GUIDED, START, Comparison, metric_name

CSV_HEAD = (
    "arm",
    "title",
    "kind",
    "split",
    "metric",
    "mean",
    "low",
    "high",
    "seeds",
    "fino_minus_arm",
    "fino_minus_arm_low",
    "fino_minus_arm_high",
    "within_noise_of_fino",
    "arm_minus_frozen",
    "arm_minus_frozen_low",
    "arm_minus_frozen_high",
    "within_noise_of_frozen",
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\N{SUPERSCRIPT TWO}": "$^2$",
}


def csv_text(comparison: Comparison) -> str:
    """One line for each arm, split and metric; the scores of the seeds are divided by spaces."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for arm in comparison.arms:
        for split in comparison.splits:
            for metric in comparison.metrics(split):
                keys = ("arms", arm, split, metric)
                if comparison.number(*keys, "mean") is None:
                    continue
                numbers = [_exact(comparison.number(*keys, name)) for name in ("mean", "low", "high")]
                seeds = comparison.at(*keys, "seeds") or []
                scores = " ".join(
                    _exact(comparison.number(*keys, "seeds", place)) for place in range(len(seeds))
                )
                own = [arm, comparison.title(arm), comparison.kind(arm), split, metric, *numbers, scores]
                compared = _compared(comparison, GUIDED, arm, split, metric)
                compared += _compared(comparison, arm, START, split, metric)
                writer.writerow([*own, *compared])
    return file.getvalue()


def latex_text(comparison: Comparison) -> str:
    """One ``tabular`` for each split, with booktabs' rules; the best of a column is bold."""
    parts = ["% \\usepackage{booktabs}"]
    for split in comparison.splits:
        metrics = comparison.metrics(split)
        if not metrics:
            continue
        heads = " & ".join(latex(metric_name(metric)) for metric in metrics)
        lines = [
            f"% {' '.join(split.split())}: mean and 95 % interval; $\\approx$: within noise of FINO",
            f"\\begin{{tabular}}{{l{'c' * len(metrics)}}}",
            "\\toprule",
            f"{latex(split)} & {heads} \\\\",
        ]
        kind = None
        for arm in comparison.arms:
            if comparison.kind(arm) != kind:
                lines.append("\\midrule")
                kind = comparison.kind(arm)
            cells = " & ".join(_latex_cell(comparison, arm, split, metric) for metric in metrics)
            lines.append(f"{latex(comparison.title(arm))} & {cells} \\\\")
        parts += [*lines, "\\bottomrule", "\\end{tabular}", ""]
    return "\n".join(parts)


def latex(text: str) -> str:
    """``text`` with what LaTeX would take for a command escaped; a line break becomes a space."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)


def _compared(comparison: Comparison, arm: str, than: str, split: str, metric: str) -> list[str]:
    found = comparison.difference(arm, than, split, metric)
    if found is None:
        return [""] * 4
    numbers = [_exact(value) for value in (found.mean, found.low, found.high)]
    return [*numbers, "no" if found.beyond_noise else "yes"]


def _latex_cell(comparison: Comparison, arm: str, split: str, metric: str) -> str:
    keys = ("arms", arm, split, metric)
    value = comparison.number(*keys, "mean")
    if value is None:
        return "--"
    text = f"{value:.3f}"
    shown = f"\\mathbf{{{text}}}" if value == comparison.best(split, metric) else text
    found = comparison.difference(GUIDED, arm, split, metric)
    level = "^{\\approx}" if found is not None and not found.beyond_noise else ""
    low, high = comparison.number(*keys, "low"), comparison.number(*keys, "high")
    interval = "" if low is None or high is None else f" {{\\scriptsize [${low:.3f}$, ${high:.3f}$]}}"
    return f"${shown}{level}${interval}"
