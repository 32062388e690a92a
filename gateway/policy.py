"""What may be asked for, by patterns and by an outside moderation, for all and by key; knows prompts, and no route."""

import asyncio
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import re2
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gateway.callers import Caller
from gateway.errors import ContentRefused, told_of
from gateway.keys.schema import ID
from gateway.moderation import REFUSAL, Moderation, Moderator
from gateway.patterns import Patterns, compiled
from gateway.prompts import Passage

KeyId = Annotated[str, StringConstraints(pattern=f"^{ID.pattern}$")]
# Characters that nobody sees: Unicode's format characters, variation selectors, joiners and fillers.
UNSEEN = (
    r"[\p{Cf}\x{34F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}"
    r"\x{E0000}-\x{E0FFF}]+"
)
PILES = r"([\p{M}\x{FF9E}\x{FF9F}]{30})[\p{M}\x{FF9E}\x{FF9F}]+"  # source: Unicode's Stream-Safe Text Format
PORTION = 16_384  # characters that are rewritten in one go
SEAM = 128  # characters; no letter has more marks
MAX_GROWTH = 3  # times the length
IN_TOKENS = "numbers of tokens cannot be held against the content policy here; send the prompt as text"
GROWN = "this prompt cannot be held against the content policy: its characters stand for too many others"


class Rules(BaseModel):
    """A section of the policy file.

    A prompt that a pattern of `deny` is found in is refused; where `allow` has patterns, so is one that none of those
    is found in. `moderation` is asked about what the patterns let pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deny: Patterns = ()
    allow: Patterns = ()
    moderation: Moderation | None = None


class Policies(BaseModel):
    """The policy file: what holds for everyone, and what holds for a key besides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    everyone: Annotated[Rules, Field(alias="global")] = Rules()
    keys: Mapping[KeyId, Rules] = {}


def read_policies(file: Path | None) -> Policies:
    """Read the file, if there is one.

    Raises:
        Misconfigured: it is no TOML, or a field does not fit.
    """
    if file is None:
        return Policies()
    with told_of("ATELIER_POLICY_FILE", file):
        return Policies.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))


class Filter:
    """The patterns of a section, ready for use."""

    def __init__(self, rules: Rules) -> None:
        """Compile the patterns."""
        self._deny = compiled(rules.deny) if rules.deny else None
        self._allow = compiled(rules.allow) if rules.allow else None

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to look for."""
        return self._deny is not None or self._allow is not None

    def passes(self, passage: Passage, texts: Sequence[str]) -> bool:
        """Whether the patterns let a passage pass, whose `texts` are written as its reader sees them."""
        if self._deny is not None and any(map(self._deny.search, texts)):
            return False
        return self._allow is None or not passage.is_prose or any(map(self._allow.search, texts))


class Policy:
    """Refuses prompts that are against it."""

    def __init__(self, policies: Policies, moderator: Moderator) -> None:
        """Compile all patterns."""
        self._everyone = Filter(policies.everyone)
        self._of_keys = {key: Filter(rules) for key, rules in policies.keys.items()}
        self._moderation = policies.everyone.moderation
        self._moderation_of_keys = {key: rules.moderation for key, rules in policies.keys.items() if rules.moderation}
        self._moderator = moderator

    async def check(self, prompts: Sequence[Passage], caller: Caller) -> None:
        """Refuse prompts that this caller may not send.

        Raises:
            ContentRefused: one of them is against the policy, or nobody can tell what it says.
            ModerationUnavailable: nobody can tell right now.
        """
        own = self._of_keys.get(caller.id)
        filters = [each for each in (self._everyone, own) if each is not None and each.is_needed]
        moderation = self._moderation_of_keys.get(caller.id, self._moderation)
        if (filters or moderation) and not all(passage.is_readable for passage in prompts):
            raise ContentRefused(IN_TOKENS)
        for passage in prompts if filters else ():
            texts = [await as_seen(text) for text in passage.texts]
            if not all(each.passes(passage, texts) for each in filters):
                raise ContentRefused(REFUSAL)
        judged = ["\n".join(passage.texts) for passage in prompts if passage.is_prose]
        if moderation is not None and judged:
            await self._moderator.check(moderation, judged)


async def as_seen(prompt: str) -> str:
    """Write a prompt as its reader sees it: one form for each letter, and nothing between them.

    It is done in portions, between which others get their turn: a character may become eighteen, and a pile of marks on
    one letter takes time squared.

    Raises:
        ContentRefused: it grows as no language does.
    """
    if prompt.isascii():
        return prompt
    piled: str = re2.sub(PILES, r"\1", re2.sub(UNSEEN, "", prompt))
    room = MAX_GROWTH * len(piled) + PORTION
    seen, seam = [], ""  # a letter and its marks may lie in two portions
    for start in range(0, len(piled), PORTION):
        portion = unicodedata.normalize("NFKC", seam + piled[start : start + PORTION])
        room -= len(portion) - len(seam)
        if room < 0:
            raise ContentRefused(GROWN)
        seen.append(portion[:-SEAM])
        seam = portion[-SEAM:]
        await asyncio.sleep(0)
    return str(re2.sub(UNSEEN, "", "".join((*seen, seam))))
