"""The vocabulary of all tasks: 4,096 ids in ranges of one kind, and the word that each id is in text.

Notable: one vocabulary for all, so that one model can be trained on a mixture. Words of a kind are all different, and
no word of one kind is a word of another, so a span of text says which token it was.
"""

VOCAB_SIZE = 4096

# Marks: what a token form has in the place of the words around a key or a value; text has sentences instead.
BOS, FACT, ASK, SET, MARK, OTHER, DOC, DEF = range(8)
NONE = 8  # the answer where there is none, which text says too
N_MARKS = 8

N_BRACKETS = 4
OPEN, CLOSE = 32, 36  # the kinds of brackets, opening and closing

FILL, N_FILL = 64, 64  # noise
NUMBERS, N_NUMBERS = 128, 896  # of documents
VALUES, N_VALUES = 1024, 1024
KEYS, N_KEYS = 2048, 2048

_NOISE = (
    "river", "stone", "walks", "under", "light", "green", "slowly", "beside", "paper", "window", "carries", "early",
    "bread", "small", "house", "sings", "north", "water", "garden", "follows", "old", "bridge", "quiet", "turns",
    "yellow", "field", "morning", "keeps", "dark", "horse", "summer", "finds", "long", "road", "winter", "holds",
    "cold", "table", "autumn", "gives", "warm", "street", "evening", "brings", "soft", "wheel", "market", "leaves",
    "round", "basket", "harbour", "meets", "plain", "candle", "forest", "opens", "low", "ladder", "village", "hears",
    "wide", "copper", "meadow", "silver",
)  # fmt: skip
_FIRST = [c + v for c in "bdfghjklmnprstvz" for v in "aeio"]
_SECOND = [c + v for c in "bdklmnrs" for v in "aiou"]


def word(token: int) -> str:
    """What a token is in text. Marks have no word of their own.

    Raises:
        ValueError: a mark, or no id of this vocabulary.
    """
    if KEYS <= token < KEYS + N_KEYS:
        first, second = divmod(token - KEYS, len(_SECOND))
        return _FIRST[first] + _SECOND[second]
    if VALUES <= token < VALUES + N_VALUES:
        return str(1000 + 7 * (token - VALUES))
    if NUMBERS <= token < NUMBERS + N_NUMBERS:
        return str(1 + token - NUMBERS)
    if FILL <= token < FILL + N_FILL:
        return _NOISE[token - FILL]
    if OPEN <= token < CLOSE + N_BRACKETS:
        return "([{<)]}>"[token - OPEN]
    if token == NONE:
        return "none"
    raise ValueError(f"token {token} has no word: marks have none, and the vocabulary has {VOCAB_SIZE} ids")


def kind_of(token: int) -> tuple[int, int]:
    """(first id, how many) of the tokens that could stand in this one's place as an answer."""
    for first, n in ((KEYS, N_KEYS), (VALUES, N_VALUES), (NUMBERS, N_NUMBERS), (FILL, N_FILL), (CLOSE, N_BRACKETS)):
        if first <= token < first + n:
            return first, n
    return VALUES, N_VALUES  # NONE stands where a value would
