"""Data types shared by all parts of the program, and the letters used in shape comments.

B  image-caption pairs of a training batch (one row per caption)
R  the rows among them whose share of the loss is computed
I  images            C  captions
P  image patches     L  words (tokens) of a caption
D  width of the shared embedding space
"""

from itr.types.batch import Batch, Extra, HostTokens, Tokens
from itr.types.encoded import Encoded, Pairs, Scores, Similarity, score_rows

__all__ = ["Batch", "Encoded", "Extra", "HostTokens", "Pairs", "Scores", "Similarity", "Tokens", "score_rows"]
