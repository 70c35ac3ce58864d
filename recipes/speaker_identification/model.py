"""A GRU that names the speaker after the last frame."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torchmetrics.classification import MulticlassAccuracy

from recipes.module import RecipeModule


class SpeakerIdentifier(RecipeModule):
    """A GRU reads the utterance, a linear layer turns its last state into a logit for each speaker.

    Args:
        input_size: coefficients of a frame.
        hidden_size: of the GRU.
        speakers: to tell apart.
        noise: standard deviation of what is added to the training frames, in units of theirs.
        learning_rate: of AdamW, at the start.
        epochs: that training takes, for the schedule.
    """

    metric = "test/accuracy"
    higher_is_better = True

    def __init__(
        self,
        input_size: int = 12,
        hidden_size: int = 64,
        speakers: int = 9,
        noise: float = 0.5,
        learning_rate: float = 3e-3,
        epochs: int = 50,
    ) -> None:
        loss = partial(nn.functional.cross_entropy, label_smoothing=0.1)
        super().__init__(loss, MulticlassAccuracy(speakers, average="micro"), learning_rate, epochs)
        self.save_hyperparameters()
        self.noise = noise
        self.gru = nn.GRU(input_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, speakers)
        # For tracing: training batches are packed, and a graph takes tensors.
        self.example_input_array = torch.linspace(-2, 2, 2 * 16 * input_size).reshape(2, 16, input_size)

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        """Return logits (batch, speakers).

        Args:
            x: utterances of one length, (batch, time, input_size), or of any lengths, packed.
        """
        _, state = self.gru(x)
        return self.head(state[-1])

    def training_step(self, batch: tuple[PackedSequence, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch with noise on its frames: 270 utterances are soon learned by heart."""
        x, y = batch
        noisy = x._replace(data=x.data + self.noise * torch.randn_like(x.data))
        return super().training_step((noisy, y), batch_idx)
