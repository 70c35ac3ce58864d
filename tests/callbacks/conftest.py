"""Tests that touch the trainer's own types run over both of Lightning's packages."""

from typing import Any

import pytest

from .models import PACKAGES


@pytest.fixture(params=PACKAGES, ids=lambda package: package.__name__.partition(".")[0])
def package(request: pytest.FixtureRequest) -> Any:
    """`lightning.pytorch`, then `pytorch_lightning`."""
    return request.param
