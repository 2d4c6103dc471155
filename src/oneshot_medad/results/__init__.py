"""What a prediction says, and in which forms; everything here follows from the verdict of an image."""
