"""The machine: devices, processes, files, the console, signals, and how programs end."""
