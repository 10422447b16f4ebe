"""Gemma's turns as a Jinja template, for checkpoints whose tokenizer is a SentencePiece model alone.

Source of the format: https://ai.google.dev/gemma/docs/core/prompt-structure. There is no system turn, turns alternate
and start with the user's, white space around a message is trimmed. Only what small Jinja engines know is used.
Gemma 3's puts a system message, as it is, and an empty line before the first message, and takes contents in parts.
"""

from __future__ import annotations

__all__ = ["END_OF_TURN", "START_OF_TURN", "chat_template"]

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"

_ALTERNATE = "{{ raise_exception('Roles must alternate: user, assistant, user, assistant, ...') }}"
_GEMMA = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('Gemma has no system role') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set turn = 'model' %}"
    "{% else %}{% set turn = message['role'] %}{% endif %}"
    "{% if turn != ('user' if loop.index0 % 2 == 0 else 'model') %}"
    f"{_ALTERNATE}{{% endif %}}"
    f"{{{{ '{START_OF_TURN}' + turn + '\\n' + message['content'] | trim + '{END_OF_TURN}\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{START_OF_TURN}model\\n' }}}}{{% endif %}}"
)
# The name first_user_prefix is that of the published template: readers know by it that a system message has a place.
_GEMMA3 = (
    "{{ bos_token }}"
    "{% set first_user_prefix = '' %}{% set turns = messages %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set turns = messages[1:] %}"
    "{% if messages[0]['content'] is string %}{% set first_user_prefix = messages[0]['content'] + '\\n\\n' %}"
    "{% else %}{% set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' %}{% endif %}"
    "{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] == 'assistant' %}{% set turn = 'model' %}"
    "{% else %}{% set turn = message['role'] %}{% endif %}"
    "{% if turn != ('user' if loop.index0 % 2 == 0 else 'model') %}"
    f"{_ALTERNATE}{{% endif %}}"
    f"{{{{ '{START_OF_TURN}' + turn + '\\n' }}}}"
    "{% if loop.index0 == 0 %}{{ first_user_prefix }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] != 'text' %}{{ raise_exception('This model reads text alone') }}{% endif %}"
    "{{ part['text'] | trim }}"
    "{% endfor %}{% endif %}"
    f"{{{{ '{END_OF_TURN}\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{START_OF_TURN}model\\n' }}}}{{% endif %}}"
)
_TEMPLATES = {"gemma3": _GEMMA3}


def chat_template(family: str) -> str:
    """The template of a family.

    Args:
        family: its name in gemma_export.families.FAMILIES.
    """
    return _TEMPLATES.get(family, _GEMMA)
