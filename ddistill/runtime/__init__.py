"""What the programs need of the machine that they run on: files and how a program ends."""
