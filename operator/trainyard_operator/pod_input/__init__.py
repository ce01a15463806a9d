"""Input from pods, which run users' containers with any content: bounded and cleaned here, before it is used."""
