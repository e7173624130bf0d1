"""Metrics, their intervals, persona diversity, tables and figures. Imports dialogue, data, llm and core."""
