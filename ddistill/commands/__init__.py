"""The command `ddistill`: its subcommands, and the choice among them."""
