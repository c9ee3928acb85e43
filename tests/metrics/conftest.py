"""Shared by the tests of metrics."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Annotated shapes are not checked here: users have no such check, and get the library's own sentence."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
