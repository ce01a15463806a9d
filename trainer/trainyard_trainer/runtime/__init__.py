"""What every process has: its place in the world, its log, its signs of life, its last word."""
