"""The operators: raw handles, what torch must know of them, and the front doors."""
