"""Reading weights of other people's models, and copying them into ours only if they fit."""
