"""Where things run: devices and precision, ranks and launchers, seeds, signals."""
