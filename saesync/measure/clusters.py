"""Which rows of tokens count as one when it is asked how sure a number is.

Tokens of one document are alike, and a document that is longer than a row goes on in the next ones: rows are no independent
samples, documents nearly are. So the rows that begin within one document are a *cluster*; neighbouring documents share one where
there are many. A row that ends one document and begins the next ties their clusters a little: the fewer clusters, the less that
matters, and the less is known of their spread; ``MOST`` keeps both within about a tenth.

A text without documents (one long file, no separator) is cut into stretches of neighbouring rows.
"""

from __future__ import annotations

import numpy as np

from saesync.measure.dataset import Tokens

MOST = 64
FEWEST = 8  # the spread of fewer documents would say little: as many stretches of rows are taken

Clusters = np.ndarray[tuple[int], np.dtype[np.int32]]


def clusters_of(rows: Tokens, separator: int | None) -> Clusters:
    """The cluster of each row: numbers from 0 that never go down. ``separator`` is what ``pack`` puts between documents.

    A document that begins exactly where a row does is taken for the rest of the one before: the error is then too large, if
    anything.
    """
    unit = np.arange(len(rows))
    if separator is not None:
        ends = (rows[:, 1:] == separator).any(axis=1)
        documents = np.concatenate([[0], np.cumsum(ends[:-1])]) if len(rows) else unit
        if len(rows) and documents[-1] + 1 >= FEWEST:
            return _shared(documents, MOST)
    return _shared(unit, FEWEST)


def _shared(unit: np.ndarray[tuple[int], np.dtype[np.int64]], most: int) -> Clusters:
    count = int(unit[-1]) + 1 if len(unit) else 1
    return (unit * min(count, most) // count).astype(np.int32)
