"""The whole page. It loads nothing and runs nothing: no script, no font, no image, and a policy that forbids them should one slip in."""

from pipelines.report import sections
from pipelines.report.facts import Facts
from pipelines.report.html import Html, bilingual, joined, tag, text, void
from pipelines.report.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render(facts: Facts) -> str:
    """The page as HTML; a pure function of the facts."""
    parts = [
        sections.outcomes(facts),
        sections.drift(facts),
        sections.distributions(facts),
        tag("div", sections.languages(facts), sections.sources(facts), class_="grid"),
        sections.personal_data(facts),
        sections.rules(facts),
        sections.kept(facts),
        sections.clusters(facts),
        sections.versions(facts),
        sections.notes(facts),
    ]
    body = tag("body", _header(facts), tag("main", sections.tiles(facts), parts), _footer())
    return f"<!doctype html>\n{tag('html', _head(facts), body, lang='en')}\n"


def _title(facts: Facts) -> str:
    version = facts.manifest.version
    return f"Dataset version {version}" if facts.first_version == version else f"Dataset versions {facts.first_version} to {version}"


def _head(facts: Facts) -> Html:
    metas = [
        void("meta", charset="utf-8"),
        void("meta", http_equiv="Content-Security-Policy", content=POLICY),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="referrer", content="no-referrer"),
        void("link", rel="icon", href="data:,"),
    ]
    return tag("head", metas, tag("title", f"Headrace: {_title(facts)}"), tag("style", Html(STYLE)))


def _header(facts: Facts) -> Html:
    manifest = facts.manifest
    spans = [f"{topic}/{partition} {span.start:,}–{span.end:,}" for topic, part in manifest.offsets.items() for partition, span in part.items()]
    shown = joined([tag("code", span, " ") for span in spans[:8]] + ([text(f"and {len(spans) - 8} more")] if len(spans) > 8 else []))
    return tag(
        "header",
        tag("h1", bilingual(_title(facts), "数据集报告")),
        tag(
            "p",
            f"committed {manifest.created_at:%Y-%m-%d %H:%M:%S} UTC · settings ",
            tag("code", manifest.settings_fingerprint[:12]),
            class_="soft small",
        ),
        tag("p", "offsets ", shown, class_="soft small"),
    )


def _footer() -> Html:
    words = (
        "Every record has exactly one outcome. Scores, lengths and languages are those of kept documents; outcomes and rules those of all records."
    )
    return tag("footer", tag("p", words, class_="soft small"), class_="page")
