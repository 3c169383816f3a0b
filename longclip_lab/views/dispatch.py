"""`plot`: the figure of a result, found by the result's type.

A module that draws results of a type registers its function here::

    @plot.register
    def plot_truncation(curve: TruncationCurve, *, title: str = "...") -> go.Figure: ...
"""

from __future__ import annotations

from functools import singledispatch

import plotly.graph_objects as go

from longclip_lab.errors import LabError


@singledispatch
def plot(result: object, **options: object) -> go.Figure:
    """The figure of a result; `options` are those of the function registered for its type.

    Raises LabError for a type without a figure.

    >>> plot(3)
    Traceback (most recent call last):
    longclip_lab.errors.LabError: There is no figure of a result of type int.
    """
    raise LabError(f"There is no figure of a result of type {type(result).__name__}.")
