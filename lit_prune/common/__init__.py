"""What every room needs: names, numbers, ranks, ways to run a network."""
