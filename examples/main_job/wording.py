"""Write the texts of generated posts, with sentiment words, negations and contrasts."""

import re

import numpy as np

GOOD = (
    "lovely", "wonderful", "great", "brilliant", "sweet", "amazing", "perfect", "delightful",
    "happy", "proud", "cheerful", "grateful", "gorgeous", "fantastic", "superb", "warm",
    "glorious", "charming", "joyful", "blessed",
)  # fmt: skip
BAD = (
    "awful", "terrible", "sad", "horrible", "broken", "lonely", "angry", "grim", "dreadful",
    "ugly", "painful", "bitter", "miserable", "nasty", "gloomy", "tragic", "cruel", "scary",
    "ruined", "hopeless",
)  # fmt: skip
PLAIN = (
    "usual", "ordinary", "early", "late", "local", "new", "old", "second", "daily", "short",
    "long", "typical", "regular", "quiet", "next", "general", "public", "weekly", "plain",
    "main",
)  # fmt: skip
THINGS = (
    "morning", "train", "street", "dinner", "office", "game", "ticket", "garden", "meeting",
    "phone", "photo", "song", "coffee", "city", "market", "river", "lesson", "weekend",
    "journey", "window", "story", "neighbour", "kitchen", "concert", "walk", "trip", "road",
    "party", "bus", "station", "school", "library", "airport", "beach", "museum", "bridge",
    "plan", "queue", "message", "holiday",
)  # fmt: skip
TIMES = (
    "today tonight", "this week", "on monday", "this morning", "in june", "after work",
    "at noon", "before lunch", "again", "since friday", "right now", "on the way home",
    "last night", "for once",
)  # fmt: skip
OPENERS = (
    "so", "well", "ok", "look", "update:", "just in:", "and", "yes", "hm", "right",
    "here it is:", "for the record,", "seen at the corner,", "from the archive:", "third try:",
    "my view:",
)  # fmt: skip
FILLERS = (
    "we went to the {t}",
    "the {t} is by the {t2}",
    "waiting for the {t}",
    "off to the {p} {t}",
    "somebody took the {t}",
    "here is the {t} with the {t2}",
    "they moved the {t} {w}",
    "talking about the {t} {w}",
    "there was a {p} {t}",
    "we passed the {t2} and the {t}",
)
POLAR = (
    "what a {s} {t}",
    "the {t} was {s}",
    "so {s}, the {t} {w}",
    "such a {s} {t} {w}",
    "everything about the {t} is {s}",
    "they call the {t} {s}",
    "{s} {t}, {s2} {t2}",
)
NEGATED = (
    "the {t} was not {o} at all",
    "nothing {o} about this {t}",
    "nobody called the {t} {o}",
    "never a {o} {t} with you",
)
CONTRAST = (
    "thought the {t} would be {o} but it was {s}",
    "the {t} looked {o}, in the end it was {s}",
    "{s} {t}, whoever said {o} was wrong",
    "from a {o} {t} to a {s} {t2}",
)
NEUTRAL = (
    "the {t} is {p}",
    "a {p} {t} {w}",
    "the {t} opens {w}",
    "see the {t} and the {p} {t2}",
    "a photo of the {t} {w}",
    "the {p} {t} is back",
    "the {t} was neither {g} nor {b}",
)


def write_post(sentiment: str, random: np.random.Generator) -> str:
    """Return a text of one to three clauses.

    Args:
        sentiment: "positive", "neutral" or "negative".
        random: generator for all choices.

    Returns:
        The text; like tweets, some contain a handle, a hashtag or a URL.
    """

    def pick(words: tuple[str, ...]) -> str:
        return words[int(random.integers(len(words)))]

    def fill(pattern: str) -> str:
        own, other = (BAD, GOOD) if sentiment == "negative" else (GOOD, BAD)
        return pattern.format(
            s=pick(own), s2=pick(own), o=pick(other), g=pick(GOOD), b=pick(BAD), p=pick(PLAIN),
            t=pick(THINGS), t2=pick(THINGS), w=pick(TIMES),
        )  # fmt: skip

    kind = random.random()
    patterns: tuple[str, ...]
    if sentiment == "neutral":
        patterns = NEUTRAL
    elif kind < 0.15:
        patterns = NEGATED
    elif kind < 0.32:
        patterns = CONTRAST
    else:
        patterns = POLAR
    clauses = [fill(pick(patterns))]
    for _ in range(1 + int(random.integers(2))):
        clauses.insert(int(random.integers(len(clauses) + 1)), fill(pick(FILLERS)))
    if random.random() < 0.5:
        clauses[0] = f"{pick(OPENERS)} {clauses[0]}"
    text = re.sub(r"\ba (?=[aeiou])", "an ", ", ".join(clauses))
    if random.random() < 0.25:
        text = f"RT @user{int(random.integers(900)) + 100}: {text}"
    if random.random() < 0.4:
        text += f" #{pick(THINGS)}"
    if random.random() < 0.3:
        text += f" http://t.co/{int(random.integers(16**6)):06x}"
    return text[0].upper() + text[1:]
