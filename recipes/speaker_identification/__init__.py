"""Who of nine speakers said a Japanese vowel."""

from recipes.speaker_identification.data import JapaneseVowels
from recipes.speaker_identification.model import SpeakerIdentifier

__all__ = ["JapaneseVowels", "SpeakerIdentifier"]
