"""Recipients and identities of another program, such as for a hardware token: age-plugin-NAME."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from statepipe.formats.age.envelope import Wrapped
from statepipe.formats.age.header import Stanza
from statepipe.formats.age.keys import PluginKey
from statepipe.formats.age.plugin import Answers, stanzas_of, unwrap_file_key, wrap_file_key
from statepipe.stages.context import Context


@dataclass(frozen=True, slots=True)
class _Person:
    """Shows a plugin's messages and prompts to the user, through the context."""

    context: Context

    def tell(self, text: str) -> None:
        self.context.warn(text)

    def ask(self, prompt: str) -> str:
        return self.context.ask(prompt)


def _converse(key: PluginKey, mode: str, opening: bytes, context: Context) -> Answers:
    """Run a conversation from the opening to the plugin's `done`. Raises StatepipeError."""
    answers = Answers(key.name, _Person(context))
    with context.program([f"age-plugin-{key.name}", f"--age-plugin={mode}"]) as plugin:
        plugin.write(opening)
        for stanza in stanzas_of(plugin.said(), key.name):
            plugin.write(bytes(answers(stanza)))
    return answers


@dataclass(frozen=True, slots=True)
class PluginRecipient:
    """A recipient that the plugin wraps for."""

    key: PluginKey
    context: Context

    def wrap(self, file_key: bytes) -> Wrapped:
        """Return the stanzas that the plugin makes. Raises StatepipeError."""
        opening = wrap_file_key([self.key.text], file_key)
        return _converse(self.key, "recipient-v1", opening, self.context).wrapped()


@dataclass(frozen=True, slots=True)
class PluginIdentity:
    """An identity that the plugin unwraps with."""

    key: PluginKey
    context: Context

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key, or None if the plugin finds none. Raises StatepipeError."""
        opening = unwrap_file_key([self.key.text], stanzas)
        return _converse(self.key, "identity-v1", opening, self.context).file_key
