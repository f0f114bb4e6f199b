from .inspection import describe
from .page.page import ExtraTable, report

__all__ = [
    "ExtraTable",
    "describe",
    "report",
]
