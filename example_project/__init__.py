"""A small shop whose periodic jobs cost money when they run twice: the example to copy from."""
