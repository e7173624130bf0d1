"""Supervised examples as token sequences: the actions of one dialogue learned in one pass over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..core.errors import TrainingError
from ..core.schema import Message, PreferencePair, SFTExample
from ..dialogue.agents.actions import parse_action

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

S = TypeVar("S", list[int], str)


@dataclass(frozen=True)
class TokenizedDialogue:
    """A dialogue as tokens, in the form TRL's `SFTTrainer` takes for tokenized.

    Attributes:
        input_ids: Tokens of the last example, prompt and completion; every earlier example is a part of them.
        completion_mask: 1 where a token belongs to a completion, else 0; as long as `input_ids`.
        task_id: Of the examples.
        turn: Of the last example.
    """

    input_ids: list[int]
    completion_mask: list[int]
    task_id: str
    turn: int


def join_examples(examples: Sequence[SFTExample], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedDialogue]:
    """Join each run of examples in which every prompt continues the example before it, token by token.

    The loss over a joined sequence is the sum of the losses of its examples, as attention looks back only; the prompt
    that they share is read once, not once per action. An example that does not continue the one before starts a new
    sequence.

    Raises:
        TrainingError: If the model's chat template does not put a completion behind the prompt as it is.
    """
    found: list[TokenizedDialogue] = []
    for example in examples:
        prompt = tokens(tokenizer, example.prompt, add_generation_prompt=True)
        whole = tokens(tokenizer, [*example.prompt, *example.completion])
        mask = [0] * len(prompt) + [1] * len(completion_of(whole, prompt, example.task_id, example.turn))
        if found and found[-1].task_id == example.task_id and prompt[: len(found[-1].input_ids)] == found[-1].input_ids:
            before = found.pop().completion_mask
            mask[: len(before)] = before
        found.append(TokenizedDialogue(whole, mask, example.task_id, example.turn))
    return found


def search_mask(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """1 where a token of a pair's prompt belongs to one of the agent's own searches, else 0; as long as the prompt's tokens.

    Raises:
        TrainingError: If the model's chat template does not put an action behind what was said before as it is.
    """
    mask = [0] * len(tokens(tokenizer, pair.prompt, add_generation_prompt=True))
    for number, message in enumerate(pair.prompt):
        if message["role"] != "assistant" or parse_action(message["content"]).type != "search":
            continue
        before = tokens(tokenizer, pair.prompt[:number], add_generation_prompt=True)
        action = completion_of(tokens(tokenizer, pair.prompt[: number + 1]), before, pair.task_id, pair.turn)
        mask[len(before) : len(before) + len(action)] = [1] * len(action)
    return mask


def completion_of(whole: S, prompt: S, task_id: str, turn: int) -> S:
    """What a dialogue, as tokens or as text, has behind its prompt.

    Raises:
        TrainingError: If the prompt with its generation prompt is not how the dialogue begins; other tokens would be learned.
    """
    if whole[: len(prompt)] != prompt:
        raise TrainingError(
            f"dialogue {task_id} turn {turn}: with its reply the prompt reads otherwise than without, by the model's chat template; "
            f"take a cra whose template only adds to what was said, or change its chat_template"
        )
    return whole[len(prompt) :]


def tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: object) -> list[int]:
    """Messages by the chat template."""
    return tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False, **options)
