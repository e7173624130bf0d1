"""Raw reviews, personas and tasks. Imports llm and core."""
