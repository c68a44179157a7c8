"""The parts of the page, each a pure function of the facts; a part without anything to say is None."""

from collections.abc import Mapping, Sequence

from pipelines.drift.drift import Contribution
from pipelines.report.charts import Stream, bars, flow, histogram, key, share, short, timeline
from pipelines.report.examples import Example
from pipelines.report.facts import Facts
from pipelines.report.html import Html, bilingual, joined, tag
from pipelines.steps.rules.why import why
from schemas.arrow import Outcome
from schemas.statistics import HISTOGRAMS, Distribution, lower_bound

CHINESE = {
    Outcome.KEPT: "保留",
    Outcome.REJECTED: "拒绝",
    Outcome.DUPLICATE: "重复",
    Outcome.DEAD: "死信",
    Outcome.RETRACTED: "撤回",
    Outcome.CONTROL: "无记录",
}
HISTOGRAM_TITLES = {
    "chars": ("Characters per document", "每篇字符数"),
    "tokens": ("Tokens per document", "每篇词元数"),
    "quality": ("Quality score", "质量分"),
    "perplexity": ("Perplexity", "困惑度"),
    "informativeness": ("Informativeness", "信息量"),
    "freshness_s": ("Seconds from produce to commit", "新鲜度（秒）"),
}
MAX_FLOW_REASONS = 6
"""Named branches of an outcome; the rest of them flow together."""
MAX_LANGUAGES = 20


def card(english: str, chinese: str, *content: Html | str | None) -> Html:
    """A part with its heading."""
    return tag("section", tag("h2", bilingual(english, chinese)), content, class_="card")


def tiles(facts: Facts) -> Html:
    """The numbers that a reader looks for first."""
    total = facts.statistics.total
    records = total.num_records
    tokens = sum(sums.tokens for sums in total.languages.values())
    values: list[tuple[str, str, str]] = [
        (f"{records:,}", "records read", "读入记录"),
        (share(total.num_kept, records), "kept", "保留"),
        (share(total.outcomes.get(Outcome.DUPLICATE, 0), records), "duplicates", "重复"),
        (share(total.outcomes.get(Outcome.REJECTED, 0), records), "rejected", "拒绝"),
        (short(tokens), "new tokens", "新增词元"),
        (short(facts.manifest.totals.num_tokens), "tokens in all versions", "累计词元"),
    ]
    if total.freshness_s:
        values.append((f"{short(quantile('freshness_s', total.freshness_s, 0.5))} s", "median freshness", "新鲜度中位数"))
    return tag(
        "div",
        [tag("div", tag("b", value), tag("span", bilingual(name, chinese), class_="name"), class_="tile") for value, name, chinese in values],
        class_="tiles",
    )


def outcomes(facts: Facts) -> Html:
    """Flow of outcomes."""
    total = facts.statistics.total
    streams = [stream for outcome in Outcome for stream in _streams(outcome, total)]
    present = [(outcome, CHINESE[outcome]) for outcome in Outcome if total.outcomes.get(outcome)]
    return card("Flow of outcomes", "结局", flow(streams), key(present))


def _streams(outcome: Outcome, total: Distribution) -> list[Stream]:
    count = total.outcomes.get(outcome, 0)
    prefix = f"{outcome}/"
    reasons = {name.removeprefix(prefix): number for name, number in total.reasons.items() if name.startswith(prefix)}
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    streams = [Stream(joined([f"{outcome}: ", tag("code", name)]), outcome, number) for name, number in ranked[:MAX_FLOW_REASONS]]
    rest = count - sum(stream.count for stream in streams)
    label = bilingual(f"{outcome}: other rules" if streams else outcome, CHINESE[outcome])
    return [*streams, *([Stream(label, outcome, rest)] if rest > 0 else [])]


def distributions(facts: Facts) -> Html:
    """Histograms of kept documents, with the baseline."""
    baseline = facts.baseline.total if facts.baseline else Distribution()
    parts = [
        tag("div", tag("h3", bilingual(*HISTOGRAM_TITLES[name])), histogram(name, counts, getattr(baseline, name)), _summary(name, counts))
        for name in HISTOGRAM_TITLES
        if (counts := getattr(facts.statistics.total, name))
    ]
    line = tag("div", tag("span", tag("i", class_="line"), bilingual("baseline", "基线")), class_="key") if facts.baseline else None
    content = tag("div", parts, class_="grid") if parts else tag("p", "No document was kept.", class_="soft")
    return card("Distributions", "分布", content, line)


def _summary(name: str, counts: Mapping[int, int]) -> Html:
    half, most = (short(quantile(name, counts, part)) for part in (0.5, 0.9))
    return tag("p", f"half below {half}, nine tenths below {most}", class_="small soft")


def quantile(name: str, counts: Mapping[int, int], part: float) -> float:
    """Upper bound of the bin in which this share of the counts is reached."""
    wanted, seen = part * sum(counts.values()), 0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= wanted:
            return lower_bound(HISTOGRAMS[name], number + 1)
    return 0.0


def languages(facts: Facts) -> Html | None:
    """Tokens per language, with fertility."""
    found = sorted(facts.statistics.total.languages.items(), key=lambda item: (-item[1].tokens, item[0]))[:MAX_LANGUAGES]
    if not found:
        return None
    chart = bars([(tag("code", name), sums.tokens, short(sums.tokens)) for name, sums in found[:8]])
    rows = [
        (tag("code", name), f"{sums.documents:,}", f"{sums.tokens:,}", f"{sums.tokens / sums.chars:.2f}" if sums.chars else "–")
        for name, sums in found
    ]
    head = (("Language", "语言"), ("Documents", "文档"), ("Tokens", "词元"), ("Fertility", "每字词元"))
    note = tag("p", "Fertility: tokens per character, the lower, the better the tokenizer knows the language.", class_="small soft")
    return card("Languages", "语言与词元", chart, table(head, rows), note)


def sources(facts: Facts) -> Html:
    """Where records came from."""
    rows = []
    for name, part in sorted(facts.statistics.sources.items(), key=lambda item: (-item[1].num_records, item[0])):
        tokens = sum(sums.tokens for sums in part.languages.values())
        rows.append((tag("span", name), f"{part.num_records:,}", share(part.num_kept, part.num_records), short(tokens)))
    head = (("Source", "来源"), ("Records", "记录"), ("Kept", "保留"), ("Tokens", "词元"))
    domains = sorted(facts.statistics.total.domains.items(), key=lambda item: (-item[1], item[0]))[:12]
    named = [(name, count, f"{count:,}") for name, count in domains if name != "unknown" or len(domains) > 1]
    chart = joined([tag("h3", bilingual("Domains of kept documents", "域名")), bars(named)]) if named else None
    return card("Sources", "来源", table(head, rows), chart)


def personal_data(facts: Facts) -> Html | None:
    """Findings of personal data by type."""
    found = sorted(facts.statistics.total.pii.items(), key=lambda item: (-item[1], item[0]))
    if not found:
        return None
    note = tag("p", "Findings in the documents as they came, by type; what happens to each type is a setting.", class_="small soft")
    return card("Personal data and secrets", "个人信息与密钥", bars([(tag("code", name), count, f"{count:,}") for name, count in found]), note)


def drift(facts: Facts) -> Html:
    """The drift report."""
    report = facts.drift
    if report is None or not report.features:
        words = "Nothing to compare with yet." if report is None or not report.baseline else "No feature has counts on both sides."
        return card("Drift", "漂移", tag("p", words, class_="soft"))
    verdict = tag(
        "p",
        tag("span", "drifting" if report.is_drifting else "steady", class_="mark over" if report.is_drifting else "mark"),
        " ",
        report.sentence(),
        ".",
    )
    released = tag("p", "A person released this version as it is.", class_="small soft") if report.is_released else None
    rows = [
        (tag("b", item.feature) if item.is_over else item.feature, f"{item.psi:.3f}", f"{item.js:.3f}", _changes(item.contributions))
        for item in report.features
    ]
    head = (("Feature", "特征"), ("PSI", ""), ("JS", ""), ("Largest changes", "主要变化"))
    span = f"versions {report.first} to {report.version}" if report.first != report.version else f"version {report.version}"
    before = f"{report.num_baseline_records:,} records of versions {report.baseline[0]} to {report.baseline[-1]}"
    against = tag("p", f"{span}, {report.num_records:,} records, against {before}.", class_="small soft")
    return card("Drift against the baseline", "相对基线的漂移", verdict, released, table(head, rows, numbers=(1, 2)), against)


def _changes(contributions: Sequence[Contribution]) -> Html:
    parts = [f"{part.bin}: {part.baseline_share:.1%} → {part.share:.1%}" for part in contributions[:2]]
    return joined([tag("div", part, class_="small") for part in parts])


def rules(facts: Facts) -> Html | None:
    """What was rejected, with examples."""
    if not facts.rules:
        return None
    parts = []
    for number, rule in enumerate(facts.rules):
        summary = tag("summary", tag("span", tag("code", rule.name), class_="what"), tag("span", f"{rule.count:,}", class_="number"))
        reason = why(rule.name)
        examples = [*([tag("div", reason, class_="small")] if reason else []), *(example(item) for item in rule.examples)]
        parts.append(tag("details", summary, examples, open="open" if number == 0 else None))
    return card("Rejected, by rule", "拒绝规则与示例", *parts)


def example(item: Example) -> Html:
    """A document: its text if there is one, and where it stands."""
    size = f", {item.num_chars:,} characters" if item.num_chars is not None else ""
    where = joined([tag("code", item.doc_id or "no id"), f" · {item.topic}/{item.partition}/{item.offset} · {item.language or 'und'}{size}"])
    return tag("blockquote", item.text, tag("footer", where), dir="auto", lang=item.language if (item.language or "").isalpha() else None)


def kept(facts: Facts) -> Html | None:
    """Examples of what was kept."""
    return card("Kept, for example", "保留示例", *[example(item) for item in facts.kept]) if facts.kept else None


def clusters(facts: Facts) -> Html | None:
    """Documents with the most duplicates."""
    if not facts.clusters:
        return None
    rows = [
        (
            joined([tag("code", item.doc_id), tag("div", "also ", [tag("code", member, " ") for member in item.members], class_="small soft")]),
            f"{item.num_exact:,}",
            f"{item.num_near:,}",
            f"{item.mean_similarity:.2f}",
        )
        for item in facts.clusters
    ]
    head = (("Kept document", "保留文档"), ("Exact", "完全"), ("Near", "近似"), ("Similarity", "相似度"))
    return card("Largest duplicate clusters", "最大重复簇", table(head, rows))


def versions(facts: Facts) -> Html:
    """All versions, newest to the right."""
    present = [(outcome, CHINESE[outcome]) for outcome in Outcome if any(moment.outcomes.get(outcome) for moment in facts.timeline)]
    first, last = facts.timeline[0], facts.timeline[-1]
    words = f"{first.created_at:%Y-%m-%d %H:%M} to {last.created_at:%Y-%m-%d %H:%M} UTC"
    chart = timeline([(moment.version, moment.outcomes) for moment in facts.timeline])
    return card("Versions", "版本时间线", chart, tag("p", words, class_="small soft"), key(present))


def notes(facts: Facts) -> Html | None:
    """What is missing."""
    return card("Notes", "说明", tag("ul", [tag("li", note) for note in facts.notes])) if facts.notes else None


def table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[Html | str]], numbers: Sequence[int] | None = None) -> Html:
    """A table; all columns but the first hold numbers unless told otherwise."""
    right = set(range(1, len(head)) if numbers is None else numbers)
    classes = ["n" if i in right else None for i in range(len(head))]
    header = [tag("th", _stacked(*words), class_=name, scope="col") for words, name in zip(head, classes, strict=True)]
    body = [tag("tr", [tag("td", cell, class_=name) for cell, name in zip(row, classes, strict=True)]) for row in rows]
    return tag("div", tag("table", tag("thead", tag("tr", header)), tag("tbody", body)), class_="wide")


def _stacked(english: str, chinese: str) -> Html:
    return joined([tag("div", english), tag("div", chinese, lang="zh", class_="zh") if chinese else None])
