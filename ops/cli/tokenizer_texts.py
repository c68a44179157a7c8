"""Which texts ``headrace tokenizer`` fits and inspects: files, or what a dataset version keeps."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ops.cli.output import say
from schemas.errors import SettingsError
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa


class Texts(NamedTuple):
    """Documents with their languages."""

    texts: "pa.Array"
    """large_string"""
    languages: "pa.Array"
    """string"""


class Source(NamedTuple):
    """Files, or if there are none a dataset version."""

    paths: list[str]
    version: int | None
    language: str | None
    text_field: str
    settings: Settings

    def batches(self) -> Iterator[Texts]:
        """All documents, in order; reads anew each time."""
        return self._of_files() if self.paths else self._of_dataset()

    def _of_files(self) -> Iterator[Texts]:
        from ops.producing.batches import read_batches
        from ops.producing.readers import ReadOptions

        options = ReadOptions(self.text_field, self.settings.kafka.max_request_bytes, self.settings.formats.max_damaged_fraction)
        for batch in read_batches(self.paths, options, self.language, lambda message: say(f"headrace tokenizer: {message}")):
            yield Texts(batch.texts, batch.languages)

    def _of_dataset(self) -> Iterator[Texts]:
        import pyarrow as pa

        from pipelines.dataset.audit import live_texts
        from pipelines.dataset.dataset import Dataset

        for block in live_texts(Dataset(Path(self.settings.root), self.version), ["language"]):
            yield Texts(pa.concat_arrays(block["text"].chunks), pa.concat_arrays(block["language"].chunks).fill_null("und"))


def fit_texts(source: Source, max_bytes: int, *, balance: bool, counted: dict[str, int]) -> Iterator[Texts]:
    """The first documents up to ``max_bytes`` in all, or of each language up to its even share; ``counted`` gets the bytes of each language."""
    shares = _even_shares(source, max_bytes) if balance else None
    for batch in source.batches():
        chosen = _within(batch, counted, shares, max_bytes)
        if len(chosen.texts):
            yield chosen
        if not shares and sum(counted.values()) >= max_bytes:
            return


def _within(batch: Texts, counted: dict[str, int], shares: Mapping[str, int] | None, max_bytes: int) -> Texts:
    """Documents for which there is room: one begins before the limit, so the last may cross it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes, languages = pc.binary_length(batch.texts).to_pylist(), batch.languages.to_pylist()
    flags, total = [], sum(counted.values())
    for size, language in zip(sizes, languages, strict=True):
        has_room = total < max_bytes if shares is None else counted.get(language, 0) < shares[language]
        flags.append(has_room)
        if has_room:
            counted[language] = counted.get(language, 0) + size
            total += size
    mask: Any = pa.array(flags, pa.bool_())
    return Texts(batch.texts.filter(mask), batch.languages.filter(mask))


def _even_shares(source: Source, max_bytes: int) -> dict[str, int]:
    import pyarrow.compute as pc

    from pipelines.tokenizers.balance import level

    if "-" in source.paths:
        raise SettingsError("--balance reads everything twice, which standard input does not allow; write it to a file first")
    sizes: dict[str, int] = {}
    for batch in source.batches():
        for language, size in zip(batch.languages.to_pylist(), pc.binary_length(batch.texts).to_pylist(), strict=True):
            sizes[language] = sizes.get(language, 0) + size
    return level(sizes, max_bytes)
