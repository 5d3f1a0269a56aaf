"""The whole of stage 1 on the embedded world, told to a newcomer."""
