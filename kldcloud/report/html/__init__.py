"""The report as a page, and its main plot as a picture."""

from kldcloud.report.html.figure import FIGURE_FORMATS, FigureFormat, render_figure
from kldcloud.report.html.page import render_html

__all__ = ["FIGURE_FORMATS", "FigureFormat", "render_figure", "render_html"]
