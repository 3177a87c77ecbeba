"""The texts that images are sampled of."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ddistill.conditions import TextCondition
from ddistill.networks.text_encoding import TextEncoder, encode_texts
from ddistill.planning.plan import StagePlan
from ddistill.settings import EvaluationSettings
from ddistill.training.trained import Networks, null_text


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts that images are sampled of, for networks that read texts.

    Attributes:
      ids: int32 `[P, L]`, token ids; image i is of text i modulo P.
      encoder: their encoder.
      null: the condition of the empty text.
    """

    ids: Int[np.ndarray, "P L"]
    encoder: TextEncoder
    null: TextCondition

    def conditions(self, rows: np.ndarray) -> TextCondition:
        """The conditions of the images `rows`."""
        return encode_texts(self.encoder, self.ids[rows % len(self.ids)])


def texts_of(plan: StagePlan, networks: Networks, ids: Int[np.ndarray, "P L"]) -> Texts:
    """Texts for a stage whose network reads texts.

    Args:
      plan: the stage.
      networks: of the run.
      ids: token ids of the texts.

    Raises:
      CheckpointError: the text encoder is not in the folder of its stage.
    """
    encoder = networks.text_encoder(plan)
    assert encoder is not None
    return Texts(ids, encoder, null_text(plan, encoder))


def caption_rows(settings: EvaluationSettings, captions: int) -> Int[np.ndarray, " P"]:
    """Rows of the data with the captions that are sampled, at most one a sample."""
    count = min(settings.samples, captions)
    return np.arange(count) * captions // count
