"""A benchmark as one HTML page: styles and drawings are in it, nothing is fetched, and no script runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from deploykit.runtime.bench.baseline import BaselineComparison
from deploykit.runtime.bench.operators import Operator, OperatorProfile
from deploykit.runtime.bench.report import Benchmark, Part, Statistics
from deploykit.runtime.bench.svg import histogram, intervals, over_runs, stacked
from deploykit.runtime.bench.variants import VariantsReport
from deploykit.runtime.files import format_size

__all__ = ["benchmark_page", "variants_page"]

Facts = Sequence[tuple[str, str]]
STYLE = """
:root{--ink:#1c2430;--pale:#5b6673;--page:#fff;--line:#d5dbe2;--fill:#2f6fb0;--mark:#b3402a;
--c0:#2f6fb0;--c1:#d98a29;--c2:#4c9a5b;--c3:#a9527f;--c4:#7b6fc0;--c5:#8b8f96}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ec;--pale:#9aa5b1;--page:#14181d;--line:#39424c;--fill:#5b9bd8;
--mark:#e8836c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:760px;margin:2em auto;
padding:0 1em}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin:2em 0 .3em}
p{margin:.4em 0}.pale{color:var(--pale)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{text-align:left;padding:.25em .8em .25em 0;border-bottom:1px solid var(--line);vertical-align:top}
th.n,td.n{text-align:right}td{overflow-wrap:break-word}
td:first-child{min-width:7em}
svg{width:100%;height:auto;margin:.5em 0}
.bar{fill:var(--fill)}.dot{fill:var(--fill);opacity:.55}.bestdot{fill:var(--c2)}
.axis{stroke:var(--pale);stroke-width:1}.mark{stroke:var(--mark);stroke-width:1.2;stroke-dasharray:4 3}
.whisker{stroke:var(--pale);stroke-width:2}
.label{font:11px system-ui,sans-serif;fill:var(--ink)}
.share{background:var(--fill);height:.7em;display:inline-block}
.verdict{border-left:4px solid var(--mark);padding-left:.8em}
"""
COLUMNS = ("mean", "p50", "p90", "p99", "min", "max")


def benchmark_page(
    report: Benchmark,
    facts: Facts,
    *,
    profile: OperatorProfile | None = None,
    no_profile: str = "",
    baseline: BaselineComparison | None = None,
) -> str:
    """Return the page of a benchmark.

    Args:
        report: the benchmark, with the time of every run.
        facts: the conditions and settings as they are printed, a label and a sentence each.
        profile: the operators of the network. no_profile: why there is none.
        baseline: the comparison with a baseline.
    """
    alone, whole = report.model_only, report.end_to_end
    runs = f"{report.runs} runs of {_counted(report.batch, 'image')}"
    parts = [
        f"<p>{whole.total.p50:.2f} ms end to end, {alone.total.p50:.2f} ms of it in the network (medians of {runs}); "
        f"{whole.images_per_second:.1f} images per second.</p>"
    ]
    if baseline is not None:
        parts.append("<h2>Beside the baseline</h2>")
        parts += [f'<p class="verdict">{escape(line)}</p>' for line in baseline.lines()]
        parts += [f'<p class="pale">{escape(note)}</p>' for note in baseline.notes]
    parts += _part("End to end", whole, {**whole.stages, "end to end": whole.total})
    parts += ["<h2>Stages</h2>", stacked({name: stage.mean for name, stage in whole.stages.items()})]
    parts.append('<p class="pale">Means, which add up to that of end to end.</p>')
    parts += _part("Network alone", alone, {**alone.stages, "network": alone.total})
    parts += _operators(profile, no_profile)
    parts += _memory(report)
    parts += ["<h2>Conditions and settings</h2>", _table((), facts)]
    return _page(report.network.model or "benchmark", parts)


def variants_page(report: VariantsReport, facts: Facts) -> str:
    """Return the page of a comparison of variants; ``facts`` are its conditions."""
    best = report.recommended
    parts = [f"<p>{escape(sentence)}</p>" for sentence in report.sentences()]
    parts += ["<h2>Ratios to the first line, end to end</h2>"]
    parts.append(intervals({one.name: one.ratio for one in report.variants}, best.name))
    parts.append('<p class="pale">Medians of one image, with intervals of 95 %; further left is faster.</p>')
    rows = [
        (one.name, one.precision, format_size(one.bytes), *_numbers(one.model_only), *_numbers(one.end_to_end))
        for one in report.variants
    ]
    titles = ("", "precision", "size", "model only, p50", "p90", "end to end, p50", "p90")
    parts.append(_table(titles, rows, numbers=3))
    parts += [f"<p>{escape(one.name)} is {escape(one.unlike)}.</p>" for one in report.variants if one.unlike]
    parts += [f"<p>{escape(n)} does not run here: {escape(why)}</p>" for n, why in report.left_out.items()]
    for one in report.variants:
        parts += [f"<h2>{escape(one.name)}</h2>", histogram(one.end_to_end.samples, _marks(one.end_to_end))]
    parts += ["<h2>Conditions</h2>", _table((), facts)]
    return _page("Variants in turn", parts)


def _page(title: str, parts: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _part(title: str, part: Part, rows: Mapping[str, Statistics]) -> list[str]:
    """The distribution, the order and the numbers of one of the two measurements."""
    lines = [(name, *(f"{getattr(times, column):.2f}" for column in COLUMNS)) for name, times in rows.items()]
    few = ", ".join(part.total.unsure)
    return [
        f"<h2>{title}</h2>",
        f'<p class="pale">{escape(part.includes)}.</p>',
        histogram(part.total.samples, _marks(part.total)),
        over_runs(part.total.samples),
        _table(("ms", *COLUMNS), lines, numbers=1),
        *([f'<p class="pale">Too few runs for {few}: it lies between the two slowest.</p>'] if few else []),
    ]


def _marks(times: Statistics) -> dict[str, float]:
    return {name: getattr(times, name) for name in ("p50", "p90", "p99")}


def _numbers(times: Statistics) -> tuple[str, str]:
    return f"{times.p50:.2f}", f"{times.p90:.2f}"


def _operators(profile: OperatorProfile | None, why_not: str) -> list[str]:
    head = "<h2>Operators of the network</h2>"
    if profile is None:
        return [head, f'<p class="pale">{escape(why_not)}</p>']
    rest = Operator("between operators", 0, profile.other_ms)
    return [
        head,
        f'<p class="pale">By ONNX Runtime\'s profile, means of {profile.runs} further calls; taking the profile costs '
        "time itself, so read the shares.</p>",
        _shares(("operator", "nodes"), (*profile.operators, rest), profile.total_ms),
        "<h2>Slowest nodes</h2>",
        _shares(("node",), profile.nodes, profile.total_ms),
    ]


def _shares(titles: Sequence[str], rows: Sequence[Operator], total: float) -> str:
    most = max((one.ms for one in rows), default=1.0) or 1.0
    lines = []
    for one in rows:
        bar = f'<td style="width:35%"><span class="share" style="width:{100 * one.ms / most:.1f}%"></span></td>'
        count = f'<td class="n">{one.count or ""}</td>' if len(titles) > 1 else ""
        share = f"{100 * one.ms / total:.1f} %" if total else ""
        lines.append(f'<tr><td>{escape(one.name)}</td>{count}<td class="n">{one.ms:.3f}</td>{bar}<td>{share}</td></tr>')
    count = '<th class="n">nodes</th>' if len(titles) > 1 else ""
    return f'<table><tr><th>{titles[0]}</th>{count}<th class="n">ms</th><th></th><th></th></tr>{"".join(lines)}</table>'


def _memory(report: Benchmark) -> list[str]:
    used = report.memory
    sizes = {
        "before the model was loaded": used.before,
        "after": used.loaded,
        "peak": used.peak,
        "on the GPU": used.device,
    }
    known = {name: size for name, size in sizes.items() if size is not None}
    most = max(known.values(), default=1)
    rows = [
        f'<tr><td>{name}</td><td class="n">{format_size(size)}</td>'
        f'<td style="width:50%"><span class="share" style="width:{100 * size / most:.1f}%"></span></td></tr>'
        for name, size in known.items()
    ]
    since = "The peak is that of the life of the process." if used.peak_of_process else ""
    return ["<h2>Memory</h2>", f"<table>{''.join(rows)}</table>", f'<p class="pale">Of the whole process. {since}</p>']


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 99) -> str:
    """A table whose columns from ``numbers`` on are numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        places = ("" if place < numbers else " class=n" for place in range(len(cells)))
        return "".join(f"<{tag}{where}>{escape(cell)}</{tag}>" for where, cell in zip(places, cells, strict=True))

    lines = [line("th", titles), *(line("td", row) for row in rows)] if titles else [line("td", row) for row in rows]
    return "<table>" + "".join(f"<tr>{one}</tr>" for one in lines) + "</table>"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
