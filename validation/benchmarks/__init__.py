"""Speed, memory and size beside peers, in one run. See README.md in this folder."""
