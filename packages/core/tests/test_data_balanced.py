"""The balanced sampler: every epoch draws its texts by the stored probabilities, independent of process and order."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import drawn_texts, json_member, members
from vfm.base import UserError
from vfm.data import (
    DatasetSpec,
    Shard,
    TrainingData,
    open_balanced,
    subset_file,
    subset_schema,
    text_key,
    uid_of,
    uniform,
    write_index,
    write_subset,
    write_tar,
)
from vfm.data.samples.order import SampleOrder
from vfm.interfaces import CuratedSubset, Pool

SIZES = [9, 0, 14, 7, 10]
CHANCES = [1.0, 0.7, 0.3, 0.05, 0.0]


def make_subset(directory, *, texts="every", chances=CHANCES, hexadecimal=False, bad=()):
    """Make images with two English and one German caption, cycling through probabilities; `bad` have a broken image."""
    pool_directory, shards, rows = directory / "pool", [], []
    pool_directory.mkdir(parents=True)
    for shard, size in enumerate(SIZES):
        samples = []
        for row in range(size):
            name = uid_of(f"{shard}-{row}") if hexadecimal else f"{shard}-{row}"
            record = json_member(uid=name, en=[f"{name} en 0", f"{name} en 1"], de=f"{name} de 0")
            samples.append((name, members(0, json=record) | ({"png": b"no"} if (shard, row) in bad else {})))
            for language, place in (("de", 0), ("en", 0), ("en", 1)):
                rows.append((shard, row, name, language, place, chances[len(rows) % len(chances)], False))
        path = pool_directory / f"{shard}.tar"
        write_tar(path, samples)
        shards.append(Shard.of(path, size))
    spec = DatasetSpec(texts={"en": "json.en", "de": "json.de"})
    pool = Pool.create(pool_directory, num_samples=write_index(pool_directory, shards, spec), languages=["en", "de"])
    subset_directory = directory / "subset"
    subset_directory.mkdir()
    columns = [pa.array(c, field.type) for c, field in zip(zip(*rows, strict=True), subset_schema(), strict=True)]
    table = pa.table(columns, schema=subset_schema())
    write_subset(subset_directory, table)
    facts = {"pool": pool.reference(subset_directory), "num_samples": sum(SIZES), "languages": ["en", "de"]}
    return CuratedSubset.create(subset_directory, texts=texts, **facts), rows


def expected(rows, seed, epoch, language=None):
    """Return the uid and the drawn texts of each image with a drawn text, computed plainly."""
    found = {}
    for _, _, uid, text_language, place, chance, _ in rows:
        key = np.array([text_key(uid, text_language, place)], dtype=np.uint64)
        if language in (None, text_language) and uniform(key, seed, epoch)[0] < chance:
            found.setdefault(uid, set()).add(f"{uid} {text_language} {place}")
    return found


def order_of(source, seed=1, shuffle_shards=2):
    return SampleOrder(source.epochs, seed=seed, shuffle_shards=shuffle_shards)


def epochs_of(source, number, **order):
    """Return (uid, texts) of each epoch's samples, in order."""
    stream, place = order_of(source, **order), 0
    for epoch in range(number):
        stop = place + int(source.epochs.sizes(epoch).sum())
        samples = stream.of_epochs(place, stop)
        assert {of for of, _ in samples} == {epoch}
        yield [(source.key(index), texts_of(source, index, epoch)) for _, index in samples]
        place = stop


def texts_of(source, index, epoch):
    places = source.view.texts(*source.locate(index), epoch)
    return {f"{source.key(index)} {language} {place}" for language in places for place in places[language]}


@pytest.mark.parametrize("hexadecimal", [True, False])
@pytest.mark.parametrize("language", [None, "en", "de"])
def test_epochs_equal_the_plain_reference(tmp_path, language, hexadecimal):
    subset, rows = make_subset(tmp_path, hexadecimal=hexadecimal)
    source = open_balanced(subset, seed=5, language=language)
    epochs = list(epochs_of(source, 4))
    for epoch, seen in enumerate(epochs):
        assert len(dict(seen)) == len(seen)
        assert dict(seen) == expected(rows, 5, epoch, language)
    assert dict(epochs[0]) != dict(epochs[1])
    (_, index), *_ = order_of(source).of_epochs(0, 1)
    sample = source.sample(index, 0)
    assert {text for texts in sample.texts.values() for text in texts} == texts_of(source, index, 0)


def test_texts_are_used_as_often_as_their_probability_over_epochs(tmp_path):
    subset, rows = make_subset(tmp_path)
    source, epochs, counts = open_balanced(subset, seed=2), 400, {}
    for seen in epochs_of(source, epochs):
        for _, texts in seen:
            for text in texts:
                counts[text] = counts.get(text, 0) + 1
    deviations = []
    for _, _, uid, language, place, chance, _ in rows:
        count = counts.get(f"{uid} {language} {place}", 0)
        if chance in (0.0, 1.0):
            assert count == chance * epochs
        else:
            deviations.append((count - chance * epochs) / np.sqrt(epochs * chance * (1 - chance)))
    assert abs(np.mean(deviations)) < 3 / np.sqrt(len(deviations))
    assert 0.7 < np.std(deviations) < 1.3
    assert max(map(abs, deviations)) < 4


def test_one_text_per_image_is_used_by_its_share_of_the_probability(tmp_path):
    subset, rows = make_subset(tmp_path, texts="one_per_image")
    source, epochs, counts = open_balanced(subset, seed=2), 300, {}
    for seen in epochs_of(source, epochs):
        for _, texts in seen:
            assert len(texts) == 1
            counts[min(texts)] = counts.get(min(texts), 0) + 1
    wanted = np.array([row[5] / 3 * epochs for row in rows])
    found = np.array([counts.get(f"{row[2]} {row[3]} {row[4]}", 0) for row in rows])
    deviations = (found - wanted) / np.sqrt(np.maximum(1e-9, wanted * (1 - wanted / epochs)))
    assert max(abs(deviations)) < 4
    assert abs(found.sum() - wanted.sum()) < 3 * np.sqrt(wanted.sum())


def test_stream_can_be_entered_anywhere_and_continues_over_epochs(tmp_path):
    subset, _ = make_subset(tmp_path)
    whole = order_of(open_balanced(subset, seed=5)).of_epochs(0, 900)
    assert whole[-1][0] > 16  # more epochs than one pass over the subset draws
    assert [epoch for epoch, _ in whole] == sorted(epoch for epoch, _ in whole)
    for start in (0, 1, 29, 300, 870):
        assert order_of(open_balanced(subset, seed=5)).of_epochs(start, start + 30) == whole[start : start + 30]


def steps_of(subset, first, last, *, workers=0, micro_batch_size=None, rank=0, world_size=1):
    source = open_balanced(subset, seed=5, language="en")
    data = TrainingData(source, drawn_texts, seed=5, global_batch_size=8, shuffle_shards=2, workers=workers)
    steps = data.steps(first, last, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)
    return [
        [(key, *map(str, (texts.tolist(), int(seed)))) for batch in step
         for key, texts, seed in zip(batch.keys, batch.inputs.texts, batch.inputs.seed, strict=True)]
        for step in steps
    ]  # fmt: skip


def test_training_resumes_exactly_with_any_ranks_workers_and_micro_batches(tmp_path):
    subset, _ = make_subset(tmp_path, bad={(0, 3), (2, 5), (2, 6)})
    whole = steps_of(subset, 0, 14)
    for start in (1, 7, 13):
        assert steps_of(subset, start, 14) == whole[start:]
    ranks = [steps_of(subset, 0, 14, rank=rank, world_size=2, micro_batch_size=3) for rank in range(2)]
    assert [ranks[0][step] + ranks[1][step] for step in range(14)] == whole
    assert steps_of(subset, 0, 14, workers=2) == whole
    assert not {"0-3", "2-5", "2-6"} & {key for step in whole for key, *_ in step}


def test_source_can_be_pickled_for_another_process(tmp_path):
    source = open_balanced(make_subset(tmp_path)[0], seed=5)
    other = pickle.loads(pickle.dumps(source))
    assert list(epochs_of(other, 2)) == list(epochs_of(source, 2))


def test_data_without_probabilities_are_refused(tmp_path):
    subset, _ = make_subset(tmp_path / "a", chances=[0.0])
    with pytest.raises(UserError, match="no text was drawn in 16 epochs in a row; curate with a larger t"):
        order_of(open_balanced(subset, seed=0))(0, 1)
    pool = Pool.load(tmp_path / "a" / "pool")
    with pytest.raises(UserError, match=r"sampler: balanced expects a CuratedSubset, got a Pool: .*pool"):
        open_balanced(pool, seed=0)
    file = subset_file(subset.path, 0)
    pq.write_table(pq.read_table(file).drop_columns("probability"), file)
    with pytest.raises(UserError, match="no column 'probability'; curate again with this version of vfm"):
        open_balanced(subset, seed=0)[0]


def test_drawing_a_large_subset_needs_the_memory_of_one_shard(tmp_path):
    subset, _ = make_subset(tmp_path)
    num_shards, size = 60, 20_000
    table = pa.table({
        "shard": np.repeat(np.arange(num_shards, dtype=np.int32), size),
        "row": np.tile(np.arange(size, dtype=np.int32), num_shards),
        "uid": [f"{i:032x}" for i in range(num_shards * size)], "language": ["en"] * (num_shards * size),
        "text_index": np.zeros(num_shards * size, np.int32),
        "probability": np.full(num_shards * size, 0.25, np.float32), "kept": np.zeros(num_shards * size, bool),
    }).cast(subset_schema())  # fmt: skip
    write_subset(subset.path, table)
    del table
    shard = Shard.of(tmp_path / "pool" / "0.tar", size)
    write_index(tmp_path / "pool", [shard] * num_shards, DatasetSpec(texts={"en": "json.en"}))
    import tracemalloc

    tracemalloc.start()
    source = open_balanced(subset, seed=0)
    number = len(order_of(source).of_epochs(700_000, 700_100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 100
    assert abs(source.epochs.sizes(0).sum() - 300_000) < 4 * np.sqrt(225_000)
    assert peak < 12e6  # bytes of numpy and Python; all keys would take 10 MB, the uids of the texts 40 MB
