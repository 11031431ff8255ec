"""Tables of the scores of several methods: means, ranks, and differences beside their standard errors."""

import csv
import dataclasses
import functools
import html
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import ttest_rel

from derain.pairs import Pair
from derain.scores import PROTOCOLS
from derain.sets import DARGNET, PUBLISHED, TestSet
from utils import plain

INPUT = "rainy input"
Row = dict[str, tuple[float, float]]  # protocol -> PSNR and SSIM of one image


@dataclasses.dataclass(frozen=True)
class Target:
    """A set to score against: what tables call it, its pairs, and what is known of it if it is a known set, whole.

    Without rainy images a pair's `rainy` is its clean image.
    """

    label: str
    folder: str
    pairs: list[Pair]
    known: TestSet | None = None


@dataclasses.dataclass
class Scored:
    """The scores of one method on one set, and its images, by the pairs' keys."""

    name: str
    rows: dict[str, Row]
    files: dict[str, Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Column:
    """The scores of methods on one set, or on a part of it: (images, 2), PSNR and SSIM."""

    title: str
    scores: dict[str, np.ndarray]
    published: dict[str, tuple[float, float]]


def columns_of(results: Sequence[tuple[Target, list[Scored]]], protocol: str) -> list[Column]:
    """Return the columns of a table: every set, and the unseen part of a set that has one."""
    columns = []
    for target, scored in results:
        known, keys = target.known, list(scored[0].rows)
        parts = [(target.label if len(keys) == len(target.pairs) else f"{len(keys)} of {target.label}", keys)]
        if known and known.unseen:
            numbers = {pair.rainy.name: pair.number for pair in target.pairs}
            unseen = [key for key in keys if numbers[key] in known.unseen]
            parts += [(f"{target.label}, {len(unseen)} unseen", unseen)] if unseen else []
        for title, part in parts:
            scores = {method.name: np.array([method.rows[key][protocol] for key in part]) for method in scored}
            whole = known and len(part) == known.pairs and protocol == "prenet"
            columns.append(Column(title, scores, published_for(known.name) if known and whole else {}))
    return columns


def published_for(name: str) -> dict[str, tuple[float, float]]:
    """Return the known scores of a set, lowest PSNR first, by method and source."""
    found = {f"{m.name} ({m.source})": m.scores[name] for m in (*PUBLISHED, DARGNET) if name in m.scores}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def means(column: Column, name: str) -> tuple[float, float]:
    """Return a method's mean PSNR and SSIM.

    PSNR is the mean over the images that no method restored perfectly, the same for all of them, unless there is none.
    """
    scores = column.scores[name]
    finite = np.all([np.isfinite(values[:, 0]) for values in column.scores.values()], axis=0)
    return float(np.mean(scores[finite, 0] if finite.any() else scores[:, 0])), float(scores[:, 1].mean())


def difference(scores: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Return the mean difference of two methods over the same images, its standard error, and p of a paired t test.

    won: on how many images the first is better. Infinite PSNRs count there, but not in the mean.
    """
    won, finite = int((scores > others).sum()), np.isfinite(scores) & np.isfinite(others)
    by_image = scores[finite] - others[finite]
    if not len(by_image):
        same = bool((scores == others).all())
        return {"mean": 0.0 if same else math.nan, "error": math.nan, "p": math.nan, "won": won}
    several = len(by_image) > 1 and by_image.std() > 0
    error = float(by_image.std(ddof=1)) / math.sqrt(len(by_image)) if several else math.nan
    p = float(ttest_rel(scores[finite], others[finite]).pvalue) if several else math.nan
    return {"mean": float(by_image.mean()), "error": error, "p": p, "won": won}


def verdict(d: dict[str, float]) -> str:
    """Say whether a difference is more than chance: beyond two standard errors."""
    if math.isnan(d["error"]):
        return "equal" if d["mean"] == 0 else "-"
    return "chance" if abs(d["mean"]) <= 2 * d["error"] else "better" if d["mean"] > 0 else "worse"


def ranks(column: Column, metric: int) -> dict[str, int]:
    """Return 1 for the best method and those within two standard errors of it, 2 for the next one."""
    methods = sorted((m for m in column.scores if m != INPUT), key=lambda m: -means(column, m)[metric])
    if len(methods) < 2:
        return {}
    scores, best = {m: column.scores[m][:, metric] for m in methods}, methods[0]
    tied = [m for m in methods if m == best or verdict(difference(scores[best], scores[m])) in ("chance", "equal")]
    return dict.fromkeys(tied, 1) | dict.fromkeys([m for m in methods if m not in tied][:1], 2)


STYLES = {
    "markdown": ("{}", "**{}**", "<u>{}</u>"),
    "latex": ("{}", r"\textbf{{{}}}", r"\underline{{{}}}"),
    "html": ("{}", "<b>{}</b>", "<u>{}</u>"),
}


def tables(
    results: Sequence[tuple[Target, list[Scored]]], protocols: Sequence[str], names: Sequence[str], kind: str
) -> str:
    """Return for each protocol the table of means and that of differences. kind: a name in STYLES."""
    text = []
    for protocol in protocols:
        columns = columns_of(results, protocol)
        text += ["", aside(PROTOCOLS[protocol].title, kind), "", table_of_means(columns, names, kind)]
        if differences := table_of_differences(columns, names, kind):
            text += ["", differences]
        for column in columns:
            for name, scores in column.scores.items():
                if same := int(np.isinf(scores[:, 0]).sum()):
                    remark = f"{name}, {column.title}: {same} of {len(scores)} images equal the clean ones"
                    text += ["", aside(f"{remark}; all means of PSNR leave them out", kind)]
    return "\n".join(text[1:])


def aside(text: str, kind: str) -> str:
    """Return a line that is not part of a table."""
    return {"latex": f"% {text}", "html": f"<p>{html.escape(text)}</p>"}.get(kind, text)


def table_of_means(columns: Sequence[Column], names: Sequence[str], kind: str) -> str:
    """Return a line per method, the best bold and the second underlined, and then a line per published method."""
    known = dict.fromkeys(name for column in columns for name in column.published)
    lines = []
    for name in dict.fromkeys([INPUT, *names, *known]):
        line = []
        for column in columns:
            values, digits = column.published.get(name), (2, 3)
            if name in column.scores:
                values, digits = means(column, name), (3, 4)
            for metric in (0, 1):
                style = STYLES[kind][ranks(column, metric).get(name, 0)]
                line.append(style.format(f"{values[metric]:.{digits[metric]}f}") if values else "-")
        if set(line) != {"-"}:
            lines.append([name, *line])
    return table(["", *(f"{c.title} {metric}" for c in columns for metric in ("PSNR", "SSIM"))], lines, kind)


def table_of_differences(columns: Sequence[Column], names: Sequence[str], kind: str) -> str:
    """Return a line per method, column and metric: how it differs from the first method; '' for a single method."""
    lines = []
    for column in columns:
        first, *others = (name for name in names if name in column.scores)
        for name in others:
            for metric, (title, digits) in enumerate((("PSNR", 3), ("SSIM", 5))):
                d = difference(column.scores[name][:, metric], column.scores[first][:, metric])
                cells = [f"{d['mean']:+.{digits}f}", f"{d['error']:.{digits}f}", f"{d['p']:.2g}"]
                won = f"{d['won']} of {len(column.scores[name])}"
                lines.append([f"{name} - {first}", f"{column.title} {title}", *cells, won, verdict(d)])
    head = ["", "", "mean difference", "standard error", "p", "images won", "verdict"]
    return table(head, lines, kind) if lines else ""


def table(head: Sequence[str], lines: Sequence[Sequence[str]], kind: str) -> str:
    """Return a table in Markdown, in LaTeX (booktabs) or in HTML. Names are escaped, marks of rank are not."""
    first, *rest = [[escaped(cell, kind) for cell in line] for line in (head, *lines)]
    if kind == "markdown":
        return "\n".join("| " + " | ".join(line) + " |" for line in (first, ["---"] * len(head), *rest))
    begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    top, *others = (" & ".join(line) + r" \\" for line in (first, *rest))
    return "\n".join([begin, r"\toprule", top, r"\midrule", *others, r"\bottomrule", r"\end{tabular}"])


MARKED = re.compile(r"<([bu])>(-?[\d.]+|inf|nan)</\1>|\\(textbf|underline)\{(-?[\d.]+|inf|nan)\}")
ESCAPES = {
    "markdown": {"|": r"\|"},
    "latex": {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {character: f"\\{character}" for character in "_%&#${}"},
    "html": {character: html.escape(character) for character in "<>&\"'"},
}


def escaped(cell: str, kind: str) -> str:
    """Return a cell's text with what would be markup in it escaped."""
    if kind != "markdown" and MARKED.fullmatch(cell):
        return cell
    return "".join(ESCAPES[kind].get(character, character) for character in cell)


def as_csv(results: Sequence[tuple[Target, list[Scored]]], protocols: Sequence[str], names: Sequence[str]) -> str:
    """Return one line per set, protocol, method and image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "protocol", "method", "image", "psnr", "ssim"])
    for target, scored in results:
        for method in scored:
            for key, row in method.rows.items():
                writer.writerows([target.label, protocol, method.name, key, *row[protocol]] for protocol in protocols)
    return text.getvalue().rstrip()


def as_json(results: Sequence[tuple[Target, list[Scored]]], protocols: Sequence[str], names: Sequence[str]) -> str:
    """Return means, differences from the first method, and every image's scores."""
    content = []
    for protocol, column in ((p, c) for p in protocols for c in columns_of(results, p)):
        first = next(name for name in names if name in column.scores)
        entry = {"set": column.title, "protocol": protocol, "published": column.published, "methods": {}}
        for name, scores in column.scores.items():
            differences = [difference(scores[:, m], column.scores[first][:, m]) for m in (0, 1)]
            entry["methods"][name] = dict(zip(("psnr", "ssim"), means(column, name), strict=True)) | {
                "images": len(scores),
                "difference": dict(zip(("psnr", "ssim"), differences, strict=True)),
            }
        content.append(entry)
    return json.dumps(plain(content), indent=2)


FORMATS = {
    "markdown": functools.partial(tables, kind="markdown"),
    "latex": functools.partial(tables, kind="latex"),
    "csv": as_csv,
    "json": as_json,
}
