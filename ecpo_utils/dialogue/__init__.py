"""The simulator, the agents, retrieval, and the rollout that brings them together. Imports data, llm, core."""
