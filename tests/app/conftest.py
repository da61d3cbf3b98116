"""What all tests of the app need."""

import logging.config

import pytest


@pytest.fixture(autouse=True, scope="session")
def _keep_the_streams():
    """The server configures logging anew, at which absl's handler closes the stream it was made with: here pytest's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.config, "_clearExistingHandlers", lambda: None)
        yield
