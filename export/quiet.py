"""Converters print progress and advice, from Python and from C++; none of it is for the user of a command."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Silence standard output, standard error (of C++ code too), warnings and logging below errors.

    What wants to be seen meanwhile, such as a progress bar, must hold its own copy of the file descriptor.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of every logger: torch gives its own a level
    sys.stderr.flush()
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
        logging.disable(disabled)
