"""Japanese Vowels: 640 utterances of nine speakers, bundled with sktime."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from recipes.data import Baselines, RecipeData

Utterance = tuple[Tensor, Tensor]


class JapaneseVowels(RecipeData):
    """Utterances of 7 to 29 frames of 12 LPC cepstrum coefficients, normalised by the training frames.

    The published split: 270 to train on, 370 to test on. A training batch is ``(PackedSequence, labels)``. A test
    batch ``(x, labels)`` holds all utterances of one length, x: (batch, time, 12), so that none needs padding.

    Args:
        batch_size: of training.
        seed: of the order of the training examples.
    """

    train_set: list[Utterance] | None = None
    test_set: list[Utterance] | None = None

    def __init__(self, batch_size: int = 32, seed: int = 1) -> None:
        super().__init__(batch_size, seed)

    def load(self) -> None:
        """Set both sets to utterances ``(x, label)``, x: (time, 12) float32, label: () int64 in 0..8."""
        train, test = load_utterances("train"), load_utterances("test")
        frames = torch.cat([x for x, _ in train])
        mean, std = frames.mean(0), frames.std(0)
        self.train_set, self.test_set = ([((x - mean) / std, label) for x, label in part] for part in (train, test))

    def collate(self, batch: list[Utterance]) -> tuple[PackedSequence, Tensor]:
        """Pack utterances, so that no padding reaches the GRU, in training or when it is observed."""
        xs, labels = zip(*batch, strict=True)
        return pack_sequence(xs, enforce_sorted=False), torch.stack(labels)

    def test_dataloader(self) -> DataLoader:
        """Load one batch for each length, shortest first."""
        return DataLoader(by_length(self.test_set), batch_size=None)

    def baselines(self) -> Baselines:
        """Score the most frequent speaker of the training set (of equals, the first)."""
        counts = torch.stack([label for _, label in self.train_set]).bincount()
        test = torch.stack([label for _, label in self.test_set])
        return {"majority": {"test/accuracy": (test == counts.argmax()).double().mean().item()}}


def by_length(utterances: list[Utterance]) -> list[Utterance]:
    """Stack utterances of equal length: a list of (x: (batch, time, 12), labels: (batch,)), shortest first."""
    groups: dict[int, list[Utterance]] = defaultdict(list)
    for x, label in utterances:
        groups[len(x)].append((x, label))
    return [tuple(map(torch.stack, zip(*groups[length], strict=True))) for length in sorted(groups)]


def load_utterances(split: str) -> list[Utterance]:
    """Read the ``"train"`` or ``"test"`` split as it is: x (time, 12) float32, label () int64 in 0..8."""
    from sktime.datasets import load_japanese_vowels  # half a second that only those who train should wait

    frames, speakers = load_japanese_vowels(split=split, return_type="df-list")
    return [
        (torch.tensor(x.to_numpy(), dtype=torch.float32), torch.tensor(int(speaker) - 1))
        for x, speaker in zip(frames, speakers, strict=True)
    ]
