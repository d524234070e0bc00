"""The two ways a command ends badly on purpose.

    PipelineError
      InputError   the caller can fix it: usage, configuration, input (exit code 2)
      JobError     the job itself failed: a check that did not hold, a full disk (exit code 1)

Every message says what is wrong, where, and what to do. Anything else that is raised is a bug and shows its traceback.
"""


class PipelineError(Exception):
    """A failure with a message written for people."""

    exit_code: int


class InputError(PipelineError):
    """The caller can fix this: usage, configuration or input."""

    exit_code = 2


class JobError(PipelineError):
    """The job failed although the request was sound."""

    exit_code = 1
