"""What each verb does on disk: recipe and paths in, manifest out. Prints nothing, exits nowhere."""
