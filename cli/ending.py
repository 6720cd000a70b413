"""How a command exits after an error: one line on stderr, a traceback only with --debug, no secrets in either."""

import os
import re
import sys

USER_ERRORS = (ValueError, OSError, FloatingPointError)  # raised by our functions for invalid settings or data
TOKEN_FLAGS = ("--token", "--hub_token")
OF_TRANSFORMERS = ("underflow_overflow", "tpu_metrics_debug")  # values of TrainingArguments' own --debug


def take_debug(args: list[str]) -> tuple[list[str], bool]:
    """
    The arguments without our `--debug`, and whether it was there. Arguments after `--` are text.

    >>> take_debug(["infill", "--debug", "a <|gap|> b"])
    (['infill', 'a <|gap|> b'], True)
    """
    end = args.index("--") if "--" in args else len(args)
    ours = [n for n in range(end) if args[n] == "--debug" and not set(args[n + 1 : n + 2]) & set(OF_TRANSFORMERS)]
    return [arg for n, arg in enumerate(args) if n not in ours], bool(ours)


def ended_by(error: BaseException, command: str, args: list[str], debug: bool) -> None:
    """Exits the process after an error, Ctrl-C, or a closed output pipe."""
    if isinstance(error, BrokenPipeError):  # from stdout: network libraries raise their own errors
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python complains at exit
        sys.exit(141)  # as shells report a process ended by SIGPIPE
    if debug:
        import traceback

        print(redacted("".join(traceback.format_exception(error)), args), file=sys.stderr, end="")
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)
    if isinstance(error, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(redacted(f"{command}: error: {told(error)}", args))


def told(error: BaseException) -> str:
    """
    The error message on one line.

    >>> told(ValueError("length=0: must be\\npositive."))
    'length=0: must be positive.'
    """
    message = " ".join(str(error).split())
    if isinstance(error, USER_ERRORS) and message:
        return message
    return f"{type(error).__name__}: {message} (unexpected; run again with --debug for the traceback)"


def redacted(text: str, args: list[str] = ()) -> str:
    """
    The text without access tokens: those in the environment, those passed as flags, and anything that looks like one.

    >>> redacted("401 for hf_abcdefghijklmnopqrstuvwxyz and s3cret", ["push", "--token", "s3cret"])
    '401 for *** and ***'
    """
    known = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    known += [value for flag, value in zip(args, args[1:]) if flag in TOKEN_FLAGS]
    known += [arg.split("=", 1)[1] for arg in args if arg.startswith(tuple(f"{flag}=" for flag in TOKEN_FLAGS))]
    for secret in filter(None, known):
        text = text.replace(secret, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{20,}", "***", text)
