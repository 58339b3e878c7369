"""What all rooms use: errors, seeds, processes, files, durations, words on the screen."""
