"""Distribution matching: settings, losses, generator, discriminator, alarms."""
