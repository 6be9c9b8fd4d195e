"""Go back to a moment: decide how, restore, replay to there and no further."""
