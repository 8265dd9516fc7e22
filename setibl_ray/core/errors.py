"""The errors this package raises on purpose, and the exit code each one ends a command with.

    SetiblError
    ├── ConfigError            a field is wrong or impossible                         exit 2
    │   └── PlacementError     no node can ever satisfy a fold's request              exit 2
    ├── DataError              a folder, file or record is wrong                      exit 2
    │   └── StorageError       data cannot be reached or read; may pass               exit 2
    ├── RunFolderError         a run folder exists, is locked, or is another run's    exit 2
    ├── RunStoppedError        storage or cluster was lost during a run; all before is kept   exit 1
    ├── FoldFailedError        a fold (or a trial) failed for good; the rest is kept  exit 1
    └── Interrupted            Ctrl-C or SIGTERM; state is kept                       exit 130

Messages say what was expected, what was found, in which field, file or record, and what to do. Every class
is built from its message alone, so that errors can be pickled between processes.
"""

from __future__ import annotations


class SetiblError(Exception):
    """Base of every error that is shown to a user as one line, without a traceback."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(SetiblError):
    exit_code = 2


class PlacementError(ConfigError):
    pass


class DataError(SetiblError):
    exit_code = 2


class StorageError(DataError):
    pass


class RunFolderError(SetiblError):
    exit_code = 2


class RunStoppedError(SetiblError):
    exit_code = 1


class FoldFailedError(SetiblError):
    exit_code = 1


class Interrupted(SetiblError):  # noqa: N818  (an interruption is not an error)
    exit_code = 130
