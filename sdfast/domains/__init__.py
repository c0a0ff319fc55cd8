"""What differs between images and texts: everything else is the same for both."""
