"""What every job needs, loaded once: the fork server imports this module, jobs are forked from it."""

import sklearn.datasets  # noqa: F401 - the embedded digits

from finepruning.pipeline import loggers, stages  # noqa: F401 - torch, Lightning and W&B come with them
from finepruning.record import commit
from finepruning.store.code import parse_sources

parse_sources()  # kept: no job parses the code anew, and all name the code that was loaded,
commit()  # and its commit
