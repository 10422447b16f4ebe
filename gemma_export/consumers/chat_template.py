"""Gemma's turns as a Jinja template, for checkpoints whose tokenizer is a SentencePiece model alone.

Source of the format: https://ai.google.dev/gemma/docs/core/prompt-structure. There is no system turn, turns alternate
and start with the user's, white space around a message is trimmed. Only what small Jinja engines know is used.
"""

from __future__ import annotations

__all__ = ["END_OF_TURN", "GEMMA_CHAT_TEMPLATE", "START_OF_TURN"]

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"

GEMMA_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('Gemma has no system role') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set turn = 'model' %}"
    "{% else %}{% set turn = message['role'] %}{% endif %}"
    "{% if turn != ('user' if loop.index0 % 2 == 0 else 'model') %}"
    "{{ raise_exception('Roles must alternate: user, assistant, user, assistant, ...') }}{% endif %}"
    f"{{{{ '{START_OF_TURN}' + turn + '\\n' + message['content'] | trim + '{END_OF_TURN}\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{START_OF_TURN}model\\n' }}}}{{% endif %}}"
)
