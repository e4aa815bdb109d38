"""What accuracy is left right after a cut, and after training, beside other packages."""
