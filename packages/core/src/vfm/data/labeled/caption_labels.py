"""Stage `data.caption_labels`: the most common nouns of captions become labels of their images."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path

from vfm.base import UserError, positions
from vfm.data.index.source import Source, open_dataset
from vfm.data.labeled.stages import CaptionLabels
from vfm.data.labeled.tags import TAGS_FILE, write_tags
from vfm.interfaces import Context, Preflight, TaggedImages

ENDINGS = (
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("s", ""),
)
FUNCTION_WORDS = frozenset(["can", "may", "might", "mine", "must", "while", "will"])  # WordNet lists them as nouns
GERUND = 0.25  # a word in -ing counts as a noun if it is used as a noun at least this often, relative to its verb
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


def label_captions(config: CaptionLabels, ctx: Context) -> TaggedImages:
    """Count the words in all captions, and label each image with the most common words that it has."""
    data = ctx.load(config.data)
    data.check_languages([config.language], config.data)
    language = config.language or data.languages[0]
    source = open_dataset(data)
    like = ctx.load(config.like) if config.like else None
    noun = Nouns(Path(config.wordnet)) if config.wordnet else WordList(config.words)
    words_of_image = _words_of_images(source, language, noun, ctx)
    counts: Counter[str] = Counter()
    for words in words_of_image:
        counts.update(words)
    most_common = sorted(counts, key=lambda word: (-counts[word], word))  # ties by name: sets have no fixed order
    names = like.class_names if like else most_common[: config.num_labels]
    if len(names) < 2:
        raise UserError(
            f"{config.name}: expected at least 2 of the words in the captions of {config.data}, got {len(names)}"
        )
    groups: dict[str, list[int]] = {}
    if like:
        groups = like.class_groups
    elif config.thirds:
        groups = _thirds(len(names))
    label_of = positions(names)
    tags = []
    for words in words_of_image:
        tags.append(sorted(label_of[word] for word in words if word in label_of))
    ctx.directory.mkdir(parents=True, exist_ok=True)
    write_tags(ctx.directory / TAGS_FILE, tags)
    return TaggedImages.create(
        ctx.directory,
        data=data.reference(ctx.directory),
        num_samples=len(words_of_image),
        class_names=names,
        num_images=[counts[name] for name in names],
        class_groups=groups,
    )


def _words_of_images(source: Source, language: str, noun: Callable[[str], str | None], ctx: Context) -> list[set[str]]:
    """Collect the nouns in the captions of each image."""
    words_of_image: list[set[str]] = [set() for _ in range(len(source))]
    number_of = positions(map(source.locate, range(len(source))))
    for shard in range(len(source.shard_sizes)):
        for text in source.texts_of_shard(shard, ctx.skip).to_pylist():
            if text["language"] == language:
                nouns = map(noun, words_of(text["text"]))
                words_of_image[number_of[shard, text["row"]]].update(filter(None, nouns))
        ctx.progress(shard + 1, len(source.shard_sizes), "shards")
    return words_of_image


def _thirds(num_labels: int) -> dict[str, list[int]]:
    """Split the labels, most common first, into head, middle and tail. Empty groups are left out."""
    cuts = [round(num_labels * part / 3) for part in range(4)]
    groups = {}
    for name, start, stop in zip(("head", "middle", "tail"), cuts, cuts[1:], strict=False):
        if stop > start:
            groups[name] = list(range(start, stop))
    return groups


def check_caption_labels(config: CaptionLabels, ctx: Preflight) -> None:
    """Check the language if the data exist."""
    data = ctx.artifact(config.data)
    if data:
        data.check_languages([config.language], config.data)


def words_of(text: str) -> list[str]:
    """Split a text into words in lower case."""
    return _WORD.findall(text.lower())


class Nouns:
    """Reduces words to singular nouns, with the files of a WordNet folder.

    Many words are occasionally nouns (`white`, `two`, `in`). A word counts as a noun only if WordNet's tagged texts use
    it more often as a noun than as anything else, and a word in -ing only if it is used as a noun at least a quarter as
    often as its verb (`building`, not `playing`). Function words (`while`, `will`) and words shorter than three letters
    are left out.

    Args:
        folder: Folder with `index.noun`, `noun.exc` and `verb.exc` (irregular forms), and `cntlist.rev` (counts).

    Raises:
        UserError: If a file is missing.

    Source: the detachment rules for nouns in WordNet's manual, morphy(7WN).
    """

    def __init__(self, folder: Path) -> None:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sense, _, count, *_ in _words(folder / "cntlist.rev", 3):
            lemma, _, rest = sense.partition("%")
            kind = {"1": "noun", "2": "verb"}.get(rest[:1], "other")
            # A longer number is damaged, and would not fit into 64 bits.
            counts[kind][lemma] += int(count) if count.isdecimal() and len(count) < 19 else 0
        listed = {line.split(" ", 1)[0] for line in _lines(folder / "index.noun") if not line.startswith(" ")}
        self.irregular = _irregular_forms(folder / "noun.exc")
        irregular_verbs = _irregular_forms(folder / "verb.exc")

        def count_of_verb(word: str) -> int:
            stem = word.removesuffix("ing")
            if stem == word:  # only words in -ing are compared with a verb
                return 0
            verbs = counts["verb"]
            return max(verbs[stem], verbs[f"{stem}e"], verbs[irregular_verbs.get(word, "")])

        self.nouns: set[str] = set()
        for word, as_noun in counts["noun"].items():
            if word not in listed or len(word) <= 2 or word in FUNCTION_WORDS:
                continue
            is_mostly_noun = as_noun > counts["verb"][word] + counts["other"][word]
            if is_mostly_noun and as_noun >= GERUND * count_of_verb(word):
                self.nouns.add(word)

    def __call__(self, word: str) -> str | None:
        """Find the singular of a word. A word that is not a noun gives None."""
        singular = self.irregular.get(word)
        if singular in self.nouns:
            return singular
        if word in self.nouns:
            return word
        for ending, replacement in ENDINGS:
            if word.endswith(ending):
                singular = word.removesuffix(ending) + replacement
                if singular in self.nouns:
                    return singular
        return None


class WordList:
    """Recognises the words of a list, also with a plural ending `s` or `es`."""

    def __init__(self, words: Iterable[str]) -> None:
        # Words without an ending come last, so that a listed word is preferred to a plural of another word.
        self.forms: dict[str, str] = {}
        for ending, word in product(("es", "s", ""), words):
            self.forms[word.lower() + ending] = word

    def __call__(self, word: str) -> str | None:
        """Find the listed word. A word that is not listed gives None."""
        return self.forms.get(word)


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            yield from filter(str.strip, stream)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; expected a WordNet folder with {file.name}") from None


def _irregular_forms(file: Path) -> dict[str, str]:
    return {form: base for form, base, *_ in _words(file, 2)}


def _words(file: Path, count: int) -> Iterator[list[str]]:
    """Split each line into at least `count` words.

    Raises:
        UserError: If the file is missing, or a line has fewer words.
    """
    for number, line in enumerate(_lines(file), start=1):
        words = line.split()
        if len(words) < count:
            raise UserError(f"{file}: line {number}: expected {count} words, got {len(words)}")
        yield words
