"""Other projects' files in our forms, and ours in theirs."""
