"""Findings about the small model: questions, each measured over many drawn cases and answered in a table and a figure.

    measure.py      FINDINGS: {name: (question, function that measures it)}; Model: what several of them share
    sureness.py     those about how sure the model is
    markdown.py     tables and numbers as text
    __main__.py     the command: python -m minivl.studies.findings [NAME ...]
"""

from minivl.studies.findings import sureness  # noqa: F401  (adds its findings)
from minivl.studies.findings.measure import FINDINGS, Model

__all__ = ["FINDINGS", "Model"]
