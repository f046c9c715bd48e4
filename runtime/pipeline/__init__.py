"""Images on their way through a network: one after the other, or several at the same time and in order."""
