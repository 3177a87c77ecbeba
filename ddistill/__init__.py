"""ddistill: one slow diffusion teacher into one or many fast students."""
