"""What the demo needs beyond the shop: servers, processes, counting, and what it prints.

A project that copies the example needs none of this.
"""
