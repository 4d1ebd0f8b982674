"""Loading and saving without the libraries' progress bars and advice on the user's terminal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from transformers.utils import logging as library


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, warnings and hints of transformers and peft off the terminal; errors are raised as ever.

    Nothing is lost by it: what such a warning could mean for us (missing weights, no end token, modules
    without adapter) is checked by the callers and raised.
    """
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
