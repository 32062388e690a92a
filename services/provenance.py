"""Where a file comes from, as it says itself: model, revision, seed, parameters, and that no camera made it.

The prompt only where its author has asked for that. The words are for all formats; each codec in `media/` puts them
where its format has a place for them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import quoteattr

SOFTWARE = "Atelier"
AI_GENERATED = "AI-generated"
# The IPTC's word for what a model made, which other software knows. Source: cv.iptc.org/newscodes/digitalsourcetype
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@dataclass(frozen=True)
class Provenance:
    """What made a file.

    Args:
        model: its id in the registry.
        revision: of its weights.
        seed: that makes the same file again.
        parameters: that the request or the model's defaults chose; texts only where the caller wants them there.
    """

    model: str
    revision: str
    seed: int
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tags(self) -> dict[str, str]:
        """By the names that formats with free tags have for them."""
        return {
            "Software": SOFTWARE,
            "Comment": AI_GENERATED,
            "Model": self.model,
            "Revision": self.revision,
            "Seed": str(self.seed),
            "Parameters": json.dumps(dict(self.parameters), sort_keys=True),
        }

    @property
    def line(self) -> str:
        """In one line of ASCII, for formats with room for one."""
        said = {"model": self.model, "revision": self.revision, "seed": self.seed, **self.parameters}
        return f"{AI_GENERATED}: {json.dumps(said)}"

    @property
    def extras(self) -> dict[str, Any]:
        """As JSON, for formats with room for it."""
        said = {"model": self.model, "revision": self.revision, "seed": self.seed, "parameters": dict(self.parameters)}
        return {"comment": AI_GENERATED, "digitalSourceType": SOURCE_TYPE, **said}

    @property
    def xmp(self) -> bytes:
        """As an XMP packet, for pictures. Source: ISO 16684-1, and the IPTC's extension for `DigitalSourceType`."""
        described = {
            "xmp:CreatorTool": SOFTWARE,
            "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE,
            **{f"atelier:{name}": text for name, text in self.tags.items() if name not in ("Software", "Comment")},
        }
        attributes = " ".join(f"{name}={quoteattr(text)}" for name, text in described.items())
        return (
            '<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
            ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:atelier="urn:atelier:provenance:1#"'
            f" {attributes}/></rdf:RDF></x:xmpmeta>"
            '<?xpacket end="r"?>'
        ).encode()
