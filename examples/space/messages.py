"""Shows user errors on the page; the details of all others stay in the log."""

import functools
import html

import gradio as gr


def told(function):
    """Shows the message of a `ValueError` on the page, which does not change."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            # the page renders messages as HTML, which would swallow <|gap|>
            message = html.escape(str(error).removeprefix("inputs[0]: "))
            gr.Warning(message, title="Not possible")
            return gr.skip()

    return call


def answered(function):
    """Passes the message of a `ValueError` to API clients, without a stack trace."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call
