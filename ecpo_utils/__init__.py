"""ECPO: expectation confirmation preference optimization for conversational recommendation agents."""

__version__ = "0.1.0"
