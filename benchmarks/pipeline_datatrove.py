"""datatrove's half of benchmarks/pipeline.py, a process of its own: its filters, MinHash (14 buckets of 8) and tokenization, one task each.

Words are those of its own default for English (spaCy), or, with ``--words whitespace``, split at white space: what the papers did, and
datatrove's fastest way. Importing it and loading its word splitter is measured apart, before the clock starts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.corpus import keep_to_one_core, num_megabytes, pipeline_parser, read_documents, say


def stages(folder: Path, tokenizer: Path, words: Any, *, filters: bool) -> Iterable[tuple[list[Any], int]]:
    """(pipeline, tasks) in the order in which datatrove's own examples run them."""
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature  # type: ignore[import-untyped]
    from datatrove.pipeline.dedup.minhash import MinhashConfig  # type: ignore[import-untyped]
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-untyped]
    from datatrove.pipeline.tokens import DocumentTokenizer  # type: ignore[import-untyped]
    from datatrove.pipeline.writers import JsonlWriter  # type: ignore[import-untyped]

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    kept = str(folder / ("kept" if filters else "input"))
    if filters:
        yield [JsonlReader(str(folder / "input")), *filter_steps(words), JsonlWriter(kept, compression=None)], 1
    yield [JsonlReader(kept), MinhashDedupSignature(str(folder / "signatures"), config=config, language=words)], 1
    yield [MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)], config.num_buckets
    yield [MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config)], 1
    end = DocumentTokenizer(str(folder / "tokens"), str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>", shuffle_documents=False)
    yield [JsonlReader(kept), MinhashDedupFilter(str(folder / "remove")), end], 1


def filter_steps(words: Any) -> list[Any]:
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter  # type: ignore[import-untyped]

    c4 = C4QualityFilter(filter_no_terminal_punct=True, language=words)
    return [GopherRepetitionFilter(language=words), GopherQualityFilter(language=words), c4, FineWebQualityFilter(language=words)]


def words_of(kind: str) -> Any:
    """What its steps take as ``language``, ready to use."""
    if kind == "whitespace":
        return whitespace_words()
    from datatrove.utils.typeshelper import Languages  # type: ignore[import-untyped]
    from datatrove.utils.word_tokenizers import load_word_tokenizer  # type: ignore[import-untyped]

    splitter = load_word_tokenizer(Languages.english)
    splitter.word_tokenize("The first call loads it.")
    splitter.sent_tokenize("And this one too.")
    return Languages.english


def whitespace_words() -> Any:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Whitespace(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return text.splitlines()

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    return Whitespace()


def let_xxhash_take_strings() -> None:
    """datatrove 0.10 hands strings to xxhash, which has stopped taking them."""
    import xxhash
    from datatrove.utils.hashes import xxhash as module  # type: ignore[import-untyped]

    class Encoding:
        def __getattr__(self, name: str) -> Any:
            return lambda data: getattr(xxhash, name)(data.encode() if isinstance(data, str) else data)

    module.xxhash = Encoding()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    began_start = time.process_time()
    from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-untyped]
    from loguru import logger

    logger.remove()
    let_xxhash_take_strings()
    words = words_of(args.words)
    start_s = time.process_time() - began_start
    documents = read_documents(args.corpus, number=args.documents, step=args.step)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "input").mkdir()
        lines = (json.dumps({"id": document["id"], "text": document["text"]}, ensure_ascii=False) + "\n" for document in documents)
        (folder / "input" / "00000.jsonl").write_text("".join(lines), "utf-8")
        start, start_cpu = time.perf_counter(), time.process_time()
        parts: dict[str, float] = {}
        for number, (pipeline, tasks) in enumerate(stages(folder, args.tokenizer, words, filters=args.filters)):
            began = time.process_time()
            LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(folder / "logs" / str(number))).run()
            parts[" + ".join(type(step).__name__ for step in pipeline)] = time.process_time() - began
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
        num_tokens = sum(path.stat().st_size for path in (folder / "tokens").glob("*.ds")) // 2
    return {
        "documents": len(documents),
        "megabytes": num_megabytes(documents),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "start_s": start_s,
        "num_tokens": num_tokens,
        "parts": parts,
    }


def main() -> None:
    parser = pipeline_parser()
    parser.add_argument("--words", choices=["default", "whitespace"], default="default")
    keep_to_one_core()
    say(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
