"""Charts as inline SVG. Shapes only: every word stands in HTML beside them, so that it keeps its size on a phone and can be selected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.report.html import Html, bilingual, joined, tag
from schemas.arrow import Outcome
from schemas.statistics import HISTOGRAMS, Bins, lower_bound

FLOW_HEIGHT = 300
"""Pixels for all records; a stream that is thinner than its words is drawn as thin as it is, its words get ROW_HEIGHT."""
ROW_HEIGHT = 46
BAR_WIDTH, MIN_TIMELINE = 48, 280
"""Pixels of a version on the time line at most, and of the whole line at least."""
Number = int | float


@dataclass(frozen=True)
class Stream:
    """One branch of the flow."""

    label: Html
    kind: Outcome
    count: int


def flow(streams: Sequence[Stream]) -> Html:
    """All records on the left, where they went on the right: ribbons as thick as their share."""
    total = sum(stream.count for stream in streams) or 1
    thickness = [FLOW_HEIGHT * stream.count / total for stream in streams]
    rows = [max(ROW_HEIGHT, height) for height in thickness]
    ribbons, left, top = [], 0.0, 0.0
    for stream, height, row in zip(streams, thickness, rows, strict=True):
        ribbons.append(_ribbon(stream.kind, left, top + (row - height) / 2, height))
        left, top = left + height, top + row
    drawing = tag("svg", ribbons, viewBox=f"0 0 100 {top:.0f}", height=f"{top:.0f}", preserveAspectRatio="none", aria_hidden="true")
    words = [
        tag(
            "li",
            tag("span", stream.label, class_="what"),
            tag("span", f"{stream.count:,} · {share(stream.count, total)}", class_="small soft"),
            style=f"height:{row:.1f}px",
        )
        for stream, row in zip(streams, rows, strict=True)
    ]
    return tag("div", drawing, tag("ol", words), class_="flow")


def _ribbon(kind: Outcome, left: float, right: float, height: float) -> Html:
    height = max(height, 0.8)
    over = f"M4 {left:.1f}C50 {left:.1f} 50 {right:.1f} 96 {right:.1f}"
    bottom_left, bottom_right = f"{left + height:.1f}", f"{right + height:.1f}"
    path = f"{over}V{bottom_right}C50 {bottom_right} 50 {bottom_left} 4 {bottom_left}Z"
    ends = [tag("rect", x=x, y=f"{y:.1f}", width=4, height=f"{height:.1f}", class_=kind) for x, y in ((0, left), (96, right))]
    return joined([tag("path", d=path, class_=f"ribbon {kind}"), *ends])


def histogram(field: str, counts: Mapping[int, int], baseline: Mapping[int, int]) -> Html:
    """Shares of the bins as bars, the baseline's as a stepped line over them."""
    bins = HISTOGRAMS[field]
    first, last = min([*counts, *baseline]), max([*counts, *baseline])
    numbers = range(first, last + 1)
    now, before = _shares(counts, numbers), _shares(baseline, numbers)
    highest = max([*now, *before]) or 1
    bars = [
        tag(
            "rect",
            tag("title", f"{_span(bins, number)}: {part:.1%}"),
            x=f"{i + 0.08:.2f}",
            y=f"{100 - 100 * part / highest:.2f}",
            width="0.84",
            height=f"{100 * part / highest:.2f}",
            class_="kept",
        )
        for i, (number, part) in enumerate(zip(numbers, now, strict=True))
        if part
    ]
    steps = "".join(f"{'M' if i == 0 else 'L'}{i} {100 - 98 * part / highest:.2f}H{i + 1}" for i, part in enumerate(before))
    line = tag("path", d=steps, class_="baseline", vector_effect="non-scaling-stroke") if baseline else None
    drawing = tag("svg", bars, line, viewBox=f"0 0 {len(numbers)} 100", preserveAspectRatio="none", role="img", aria_label=f"histogram of {field}")
    middle = numbers[len(numbers) // 2]
    ends = (lower_bound(bins, first), lower_bound(bins, middle), lower_bound(bins, last + 1))
    return tag("div", drawing, tag("div", [tag("span", short(value)) for value in ends], class_="axis"), class_="hist")


def timeline(versions: Sequence[tuple[int, Mapping[Outcome, int]]]) -> Html:
    """One bar per version, stacked by outcome, in order."""
    highest = max((sum(outcomes.values()) for _, outcomes in versions), default=0) or 1
    bars = [_stack(i, version, outcomes, highest) for i, (version, outcomes) in enumerate(versions)]
    drawing = tag("svg", bars, viewBox=f"0 0 {len(versions)} 100", preserveAspectRatio="none", role="img", aria_label="records per version")
    words = [tag("span", f"v{versions[0][0]}"), tag("span", f"at most {highest:,} records"), tag("span", f"v{versions[-1][0]}")]
    return tag("div", drawing, tag("div", words, class_="axis"), class_="hist", style=f"max-width:{max(MIN_TIMELINE, BAR_WIDTH * len(versions))}px")


def _stack(index: int, version: int, outcomes: Mapping[Outcome, int], highest: int) -> Html:
    parts, top = [], 100.0
    for outcome in Outcome:
        height = 100 * outcomes.get(outcome, 0) / highest
        top -= height
        if height:
            title = tag("title", f"version {version}: {outcomes[outcome]:,} {outcome}")
            parts.append(tag("rect", title, x=f"{index + 0.08:.2f}", y=f"{top:.2f}", width="0.84", height=f"{height:.2f}", class_=outcome))
    return joined(parts)


def bars(rows: Sequence[tuple[Html | str, int, str]]) -> Html:
    """Label, bar, number; the longest bar is the largest count."""
    highest = max((count for _, count, _ in rows), default=1) or 1
    cells = [
        (tag("span", label), tag("span", tag("i", style=f"width:{100 * count / highest:.1f}%"), class_="track"), tag("span", number, class_="number"))
        for label, count, number in rows
    ]
    return tag("div", cells, class_="bars")


def key(outcomes: Sequence[tuple[Outcome, str]]) -> Html:
    """Which colour is which outcome."""
    return tag("div", [tag("span", tag("i", class_=f"bg-{outcome}"), bilingual(outcome, chinese)) for outcome, chinese in outcomes], class_="key")


def share(count: Number, total: Number) -> str:
    """A part of a whole in per cent."""
    part = count / total if total else 0
    return f"{part:.0%}" if part in (0, 1) or 0.1 <= part <= 0.9 else f"{part:.1%}"


def short(value: Number) -> str:
    """A number in four or five characters."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:,.0f}" if value == round(value) or value >= 100 else f"{value:.2g}"


def _shares(counts: Mapping[int, int], numbers: range) -> list[float]:
    total = sum(counts.values())
    return [counts.get(number, 0) / total if total else 0.0 for number in numbers]


def _span(bins: Bins, number: int) -> str:
    return f"{short(lower_bound(bins, number))} to {short(lower_bound(bins, number + 1))}"
