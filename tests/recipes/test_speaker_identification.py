from pathlib import Path

import numpy as np
import pytest
import sktime.datasets
import torch

from recipes.speaker_identification import JapaneseVowels, SpeakerIdentifier
from recipes.speaker_identification.data import by_length

PUBLISHED_TEST_COUNTS = [31, 35, 88, 44, 29, 24, 40, 50, 29]


def read_file(split: str) -> list[tuple[np.ndarray, int]]:
    """Read sktime's file line by line: (frames (time, 12), speaker 0..8)."""
    path = Path(sktime.datasets.__file__).parent / "data" / "JapaneseVowels" / f"JapaneseVowels_{split}.ts"
    lines = path.read_text().splitlines()
    utterances = []
    for line in lines[lines.index("@data") + 1 :]:
        *coefficients, speaker = line.split(":")
        columns = [[float(value) for value in column.split(",")] for column in coefficients]
        utterances.append((np.array(columns).T, int(speaker) - 1))
    return utterances


@pytest.fixture(scope="module")
def data() -> JapaneseVowels:
    data = JapaneseVowels()
    data.setup("fit")
    return data


def test_the_sets_are_the_published_split_normalised_by_the_training_frames(data: JapaneseVowels) -> None:
    train, test = read_file("TRAIN"), read_file("TEST")
    frames = np.concatenate([x for x, _ in train])
    mean, std = frames.mean(0), frames.std(0, ddof=1)
    for raw, made in ((train, data.train_set), (test, data.test_set)):
        assert [len(x) for x, _ in made] == [len(x) for x, _ in raw]
        assert [label.item() for _, label in made] == [speaker for _, speaker in raw]
        for (x, _), (expected, _) in zip(made, raw, strict=True):
            torch.testing.assert_close(x.double(), torch.from_numpy((expected - mean) / std), atol=1e-5, rtol=1e-5)


def test_sizes_and_lengths_are_as_published(data: JapaneseVowels) -> None:
    labels = [torch.stack([label for _, label in part]).bincount().tolist() for part in (data.train_set, data.test_set)]
    assert labels == [[30] * 9, PUBLISHED_TEST_COUNTS]
    lengths = {len(x) for x, _ in [*data.train_set, *data.test_set]}
    assert (min(lengths), max(lengths)) == (7, 29)
    assert {x.shape[1] for x, _ in data.test_set} == {12}


def test_majority_is_the_first_speaker_as_all_have_thirty_utterances(data: JapaneseVowels) -> None:
    assert data.baselines() == {"majority": {"test/accuracy": PUBLISHED_TEST_COUNTS[0] / 370}}


def test_test_batches_hold_each_utterance_once_with_others_of_its_length(data: JapaneseVowels) -> None:
    batches = list(data.test_dataloader())
    lengths = [x.shape[1] for x, _ in batches]
    assert lengths == sorted({len(x) for x, _ in data.test_set})
    utterances = [pair for xs, labels in batches for pair in zip(xs, labels, strict=True)]
    served = sorted((*x.flatten().tolist(), label.item()) for x, label in utterances)
    assert served == sorted((*x.flatten().tolist(), label.item()) for x, label in data.test_set)


def test_a_packed_batch_gives_what_each_utterance_gives_alone(data: JapaneseVowels) -> None:
    model = SpeakerIdentifier()
    utterances = data.train_set[::29]
    packed, labels = data.collate(utterances)
    assert len({len(x) for x, _ in utterances}) > 3
    assert labels.tolist() == [label.item() for _, label in utterances]
    alone = torch.cat([model(x[None]) for x, _ in utterances])
    torch.testing.assert_close(model(packed), alone, atol=1e-6, rtol=1e-5)
    grouped = torch.cat([model(x) for x, _ in by_length(utterances)])
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i][0]))
    torch.testing.assert_close(grouped, alone[order], atol=1e-6, rtol=1e-5)


def test_noise_reaches_training_frames_only(data: JapaneseVowels, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SpeakerIdentifier(noise=0.25)
    monkeypatch.setattr(model, "log", lambda *args, **kwargs: None)
    seen = []
    model.gru.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    packed, labels = data.collate(data.train_set)
    model.training_step((packed, labels), 0)
    model.test_step(next(iter(data.test_dataloader())), 0)
    added = seen[0].data - packed.data
    assert added.std().item() == pytest.approx(0.25, rel=0.02)
    assert torch.equal(seen[0].batch_sizes, packed.batch_sizes)
    assert torch.equal(seen[1], next(iter(data.test_dataloader()))[0])
