"""A tokenizer is trained on every language with the same weight, as far as it has text."""

import random

from tokenizers import Tokenizer

from pipelines.tokenizers.balance import MAX_COPIES, Gathered, shares
from pipelines.tokenizers.tokenizer import TOKENIZER_FILE, train_tokenizer
from schemas.settings_data import TokenizerSettings

CHARACTERS = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实"
)
SYLLABLES = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "st")]


def documents(rng: random.Random, number: int, *, is_chinese: bool) -> list[str]:
    """Documents of random words; the words are a tenth of the possible ones each time."""
    if is_chinese:
        return ["，".join("".join(rng.choices(CHARACTERS, k=rng.randint(4, 12))) for _ in range(30)) for _ in range(number)]
    return [" ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(400)) for _ in range(number)]


def tokens_per_character(training: list[str], languages: list[str], held_out: list[str], vocab_size: int) -> float:
    gathered = Gathered(max_bytes=2**20)
    gathered.add(training, languages)
    tokenizer = Tokenizer.from_str(train_tokenizer(gathered.balanced(), TokenizerSettings(vocab_size=vocab_size))[TOKENIZER_FILE].decode())
    return sum(len(tokenizer.encode(text).ids) for text in held_out) / sum(map(len, held_out))


def test_two_hundred_chinese_documents_among_six_hundred_english_ones_take_at_most_1_3_tokens_a_character() -> None:
    rng = random.Random(0)
    english, chinese = documents(rng, 600, is_chinese=False), documents(rng, 200, is_chinese=True)
    languages = ["en"] * len(english) + ["zh"] * len(chinese)
    assert tokens_per_character(english + chinese, languages, documents(rng, 20, is_chinese=True), vocab_size=900) <= 1.3
    plain = tokens_per_character(english + chinese, ["all"] * len(languages), documents(rng, 20, is_chinese=True), vocab_size=900)
    assert plain > 1.3, "without balancing the vocabulary is English"


def test_a_language_weighs_as_much_as_the_largest_but_is_not_repeated_without_end() -> None:
    assert shares({"en": 1_000_000, "zh": 100_000, "und": 10}, 10**9) == {"und": 10 * MAX_COPIES, "en": 1_000_000, "zh": 1_000_000}
    assert sum(shares({"en": 1_000_000, "zh": 100_000}, 300_000).values()) == 300_000
    assert shares({}, 100) == {}


def test_the_texts_stay_within_the_limit_and_nothing_of_a_small_stream_is_left_out() -> None:
    texts = [f"text number {index} of some" for index in range(40)] + ["中文文本"]
    gathered = Gathered(max_bytes=10_000)
    gathered.add(texts, ["en"] * 40 + ["zh"])
    given = list(gathered.balanced())
    assert set(given) == set(texts)
    assert given.count("中文文本") == MAX_COPIES
    limited = Gathered(max_bytes=200)
    limited.add(texts, ["en"] * 40 + ["zh"])
    assert sum(len(text.encode()) for text in limited.balanced()) <= 200 + 2 * max(len(text.encode()) for text in texts)
    assert limited.sizes["en"] <= 200 + len(texts[0].encode())
