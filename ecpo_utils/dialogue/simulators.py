"""The user simulators by the name that the parameter `user_simulator` gives them."""

from __future__ import annotations

from typing import Literal

from ..core.schema import Task
from ..llm.client import ChatClient, Meter
from .confirmation import Confirmer
from .ievalm import IEvaLMSimulator
from .simulator import Simulator

UserSimulator = Literal["ailo", "ievalm"]
SIMULATORS: dict[UserSimulator, type[Simulator]] = {"ailo": Simulator, "ievalm": IEvaLMSimulator}


def make_simulator(
    kind: UserSimulator, client: ChatClient, task: Task, *, temperature: float, confirmer: Confirmer, meter: Meter
) -> Simulator:
    """The user of one dialogue.

    Args:
        kind: "ailo" has a persona, chooses policies and confirms expectations; "ievalm" has none of these and scores nothing.
        client: The `simulator` endpoint.
        task: Persona and secret target.
        temperature: Of the first attempt at a message.
        confirmer: Scores the agent's replies; of "ievalm" only its mode counts.
        meter: Counts this dialogue's calls.
    """
    return SIMULATORS[kind](client, task, temperature=temperature, confirmer=confirmer, meter=meter)
