"""Where drift comes from: error by layer and half.

points    what artifact and reference both have
graphs    the artifact's graph with its points as outputs, and as inputs
session   running those over the folder's data files
streams   the reference's values
measure   errors
culprit   the half that stands out
"""

from __future__ import annotations

from gemma_validation.localise.localise import localise

__all__ = ["localise"]
