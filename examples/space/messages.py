"""Errors of the user become messages of the page; the reasons of all others stay in the log."""

import functools
import html

import gradio as gr


def told(function):
    """Shows the message of a `ValueError` in the page, and no stack trace."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            # the page renders messages as HTML, which would swallow <|gap|>
            message = html.escape(str(error).removeprefix("inputs[0]: "))
            raise gr.Error(message, title="Not possible", print_exception=False) from error

    return call
